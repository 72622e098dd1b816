"""Batches on a mesh of eight virtual devices."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from medcare_jax.generation.placement import even_batch, replicate
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh


def test_batches_are_rounded_up_to_the_devices_that_share_them():
    assert [even_batch(n) for n in (1, 5)] == [1, 5]
    with jax.set_mesh(make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))):
        assert [even_batch(n) for n in (1, 4, 5)] == [4, 4, 8]


def test_a_replicated_array_is_whole_everywhere():
    x = jnp.arange(8.0)
    assert replicate(x) is x
    mesh = make_mesh(MeshSettings(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        cut = jax.device_put(x, jax.NamedSharding(mesh, P("fsdp")))
        whole = jax.jit(replicate)(cut)
    assert whole.is_fully_replicated
    assert not cut.is_fully_replicated
