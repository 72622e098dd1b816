"""One process agrees with itself; several processes are in test_several_hosts.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.agreement import check_same, exchange, fetch, fetch_block, first_says, together
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh, sharding_for


def test_alone_nothing_changes():
    assert exchange("words") == ["words"]
    assert first_says(True) is True
    assert first_says(False) is False
    check_same("the config", "anything")
    with pytest.raises(FileNotFoundError, match="mine"), together():
        raise FileNotFoundError("mine")


def test_a_block_of_a_cut_array_is_the_block():
    mesh = make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
    kernel = jnp.arange(3 * 20 * 36, dtype=jnp.float32).reshape(3, 20, 36)
    path = "model/layers/mlp/up_proj/kernel"
    placed = jax.device_put(kernel, sharding_for(mesh, path, kernel.shape))
    index = (slice(1, 2), slice(3, 17), slice(5, 36))
    np.testing.assert_array_equal(fetch_block(placed, index), kernel[index])
    np.testing.assert_array_equal(fetch(placed), kernel)
