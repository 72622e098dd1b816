"""Dropout: how much is left out, whether entries are independent, and what the mask depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from medcare_jax.models.dropout import dropout

KEY = jax.random.key(7)


def kept(shape, rate, key=KEY):
    return np.asarray(dropout(jnp.ones(shape), rate, key)) != 0


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(4, 256, 64), (3, 255, 61)])  # also what 4 does not divide
def test_the_rate_is_the_rate_along_every_axis(rate, shape):
    mask = kept(shape, rate)
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(mask.mean() - (1 - rate)) < 5 * deviation / mask.size**0.5
    for axis in range(3):
        shares = mask.mean(axis=tuple(i for i in range(3) if i != axis))
        bound = 5.5 * deviation / (mask.size / shape[axis]) ** 0.5
        assert np.abs(shares - (1 - rate)).max() < bound


def test_entries_are_uncorrelated_also_those_that_share_a_hash():
    mask = kept((8, 64, 128), 0.5).astype(np.float64) * 2 - 1
    bound = 5.5 / (mask.size / 4) ** 0.5
    for quarters in range(1, 4):
        first, other = mask[:, : -16 * quarters], mask[:, 16 * quarters :]
        assert abs((first * other).mean()) < bound
    for axis in range(3):
        assert abs((mask * np.roll(mask, 1, axis)).mean()) < bound


def test_the_mean_stays_and_so_does_the_dtype():
    ones = jnp.ones((4, 512, 128), jnp.bfloat16)
    out = dropout(ones, 0.05, KEY)
    assert out.dtype == jnp.bfloat16
    assert set(np.unique(np.asarray(out, np.float32))) == {0.0, float(jnp.bfloat16(1 / 0.95))}
    exact = dropout(ones.astype(jnp.float32), 0.05, KEY).mean()
    assert float(exact) == pytest.approx(1.0, abs=5 * (0.05 / 0.95) ** 0.5 / ones.size**0.5)


def test_the_mean_of_bfloat16_stays_too():
    x = jax.random.uniform(jax.random.key(3), (4, 512, 64), minval=1.0, maxval=2.0)
    x = x.astype(jnp.bfloat16)
    kept = dropout(x, 0.05, jax.random.key(0)).astype(jnp.float32)
    scale = float(kept.sum() / jnp.where(kept == 0, 0, x.astype(jnp.float32)).sum())
    assert abs(scale - 1 / 0.95) < 2e-4


def test_a_rate_just_below_one_is_a_rate():
    assert np.isfinite(dropout(jnp.ones((1, 4, 8)), 0.999999, jax.random.key(0))).all()


def test_no_rate_changes_nothing():
    x = jax.random.normal(KEY, (2, 3, 4))
    assert dropout(x, 0.0, KEY) is x


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_keys_of_other_generators_will_do(generator):
    mask = kept((4, 64, 64), 0.5, jax.random.key(3, impl=generator))
    assert abs(mask.mean() - 0.5) < 5 * 0.5 / mask.size**0.5


def test_another_key_is_another_mask_and_the_same_key_the_same():
    assert (kept((2, 64, 64), 0.5) == kept((2, 64, 64), 0.5)).all()
    other = kept((2, 64, 64), 0.5, jax.random.fold_in(KEY, 1))
    assert abs((kept((2, 64, 64), 0.5) == other).mean() - 0.5) < 0.05


def test_the_mask_does_not_depend_on_the_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.random.normal(KEY, (8, 10, 6))
    placed = jax.device_put(x, NamedSharding(mesh, P("data")))
    drop = jax.jit(lambda x: dropout(x, 0.3, KEY))
    np.testing.assert_array_equal(drop(placed), drop(x))
    assert "all-gather" not in drop.lower(placed).compile().as_text()


def test_the_gradient_has_the_mask_of_the_value():
    x = jax.random.normal(KEY, (2, 9, 5))
    slope = jax.jit(jax.grad(jax.checkpoint(lambda x: dropout(x, 0.4, KEY).sum())))(x)
    np.testing.assert_array_equal(np.asarray(slope) != 0, kept(x.shape, 0.4))
