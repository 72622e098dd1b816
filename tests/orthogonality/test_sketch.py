"""Sketched covariances against whole ones in float64."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medcare_jax.orthogonality import (
    accumulate_covariance,
    accumulate_sketch,
    covariance_basis,
    is_whole,
    make_sketch,
    refine_sketch,
    sketch_basis,
)


def activations(seed, spectrum, *, stack=(), tokens=200):
    """Rows [*stack, tokens, d] with these singular values in random directions."""
    random = np.random.default_rng(seed)
    d = len(spectrum)
    left = np.linalg.qr(random.standard_normal((*stack, tokens, d)))[0]
    right = np.linalg.qr(random.standard_normal((*stack, d, d)))[0]
    return (left * np.asarray(spectrum)) @ np.swapaxes(right, -1, -2)


def sketched(x, *, width, parts=1):
    """The sketch of rows that come in parts."""
    shape = jax.ShapeDtypeStruct((*x.shape[:-2], x.shape[-1]), jnp.float32)
    sketch = make_sketch({"lora_a": shape}, jax.random.key(3), width=width)
    for part in np.array_split(x, parts, axis=-2):
        sketch = jax.jit(accumulate_sketch)(sketch, {"lora_a": jnp.asarray(part, jnp.float32)})
    return sketch


def projector(basis):
    basis = np.asarray(basis, np.float64)
    return basis @ np.swapaxes(basis, -1, -2)


def held(x, basis):
    """The share of the rows' energy inside, in float64."""
    return np.square(x @ np.asarray(basis, np.float64)).sum() / np.square(x).sum()


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_a_sketch_as_wide_as_the_space_is_the_covariance(energy):
    x = activations(0, [9, 7, 5, 3, 2, 1], stack=(3,))
    whole = accumulate_covariance({"lora_a": jnp.zeros((3, 6, 6))}, {"lora_a": jnp.float32(x)})
    exact = covariance_basis(whole, energy=energy)["lora_a"]
    ours = sketch_basis(sketched(x, width=6), energy=energy)["lora_a"]
    assert ours.shape == exact.shape
    np.testing.assert_allclose(projector(ours), projector(exact), atol=1e-4)


def test_a_narrow_sketch_finds_the_leading_directions():
    """Eight of 120 dimensions stand out, as activations of language models do."""
    x = activations(1, np.concatenate([[90, 70, 50, 40, 30, 25, 20, 15], np.full(112, 1.0)]))
    _, _, vt = np.linalg.svd(x, full_matrices=False)
    for energy, width in ((0.5, 2), (0.9, 5)):
        basis = sketch_basis(sketched(x, width=32), energy=energy)["lora_a"]
        assert basis.shape == (120, width)
        np.testing.assert_allclose(basis.T @ basis, np.eye(width), atol=1e-5)
        np.testing.assert_allclose(projector(basis), vt[:width].T @ vt[:width], atol=5e-3)
    random = np.linalg.qr(np.random.default_rng(0).standard_normal((120, 5)))[0]
    assert held(x, random) < 0.2 < 0.9 <= held(x, basis), "any five directions would do"


@given(decay=st.floats(0.0, 2.0), energy=st.sampled_from([0.2, 0.5, 0.8]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_no_less_than_the_energy_asked_for_is_protected(decay, energy, seed):
    """Whatever the spectrum, from flat to steep; where it is too flat, the sketch may refuse."""
    x = activations(seed, np.arange(1, 61) ** -decay, tokens=100)
    sketch = sketched(x, width=20)
    shares = np.square(np.arange(1, 61) ** -decay) / np.square(np.arange(1, 61) ** -decay).sum()
    if shares[:5].sum() < energy:  # five exact directions would not hold it: twenty probes may
        with contextlib.suppress(ValueError):
            assert held(x, sketch_basis(sketch, energy=energy)["lora_a"]) >= energy - 1e-4
        return
    assert held(x, sketch_basis(sketch, energy=energy)["lora_a"]) >= energy - 1e-4


def test_a_second_pass_finds_almost_what_the_best_directions_hold():
    """Of a flat spectrum, where random probes alone miss much."""
    roots = np.arange(1, 201) ** -0.3
    x = activations(7, roots, tokens=300)
    exact = np.cumsum(roots**2) / np.sum(roots**2)
    first = sketched(x, width=30)
    second = accumulate_sketch(refine_sketch(first), {"lora_a": jnp.float32(x)})
    narrow = [sketch_basis(sketch, energy=0.15)["lora_a"] for sketch in (first, second)]
    assert min(held(x, basis) for basis in narrow) >= 0.15 - 1e-4
    assert narrow[1].shape[-1] <= 1.3 * (np.searchsorted(exact, 0.15) + 1) < narrow[0].shape[-1]
    most = 0.85 * exact[29]
    with pytest.raises(ValueError, match="30 directions hold"):
        sketch_basis(first, energy=most)
    assert held(x, sketch_basis(second, energy=most)["lora_a"]) >= most - 1e-4
    assert not is_whole(second)
    assert is_whole(sketched(x, width=200))


def test_it_streams_and_padding_counts_nothing():
    x = activations(2, np.arange(12, 0, -1), stack=(2,), tokens=60)
    padded = np.concatenate([x, np.zeros((2, 7, 12))], axis=1)
    whole, streamed = sketched(x, width=5), sketched(padded, width=5, parts=4)
    for ours, theirs in zip(jax.tree.leaves(streamed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(whole.traces["lora_a"], np.square(x).sum((1, 2)), rtol=1e-5)
    covariance = np.swapaxes(x, 1, 2) @ x
    expected = covariance @ np.asarray(whole.probes["lora_a"], np.float64)
    np.testing.assert_allclose(whole.products["lora_a"], expected, rtol=1e-4, atol=1e-2)


def test_layers_of_different_rank_share_one_array():
    """Fewer directions than another layer, or no activations at all: zero columns."""
    steep = activations(3, [50, 1, 1, 1, 1, 1])
    flat = activations(4, [5, 5, 5, 5, 5, 5])
    basis = sketch_basis(sketched(np.stack([steep, flat, 0 * flat]), width=6), energy=0.6)["lora_a"]
    assert basis.shape == (3, 6, 4)
    assert np.square(basis).sum((1, 2)) == pytest.approx([1.0, 4.0, 0.0], abs=1e-4)


def test_of_sharded_activations_it_is_the_same():
    x = activations(5, np.arange(8, 0, -1), tokens=64)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = jax.device_put(jnp.float32(x), NamedSharding(mesh, PartitionSpec("data")))
    empty = make_sketch(
        {"lora_a": jax.ShapeDtypeStruct((8,), jnp.float32)}, jax.random.key(3), width=4
    )
    found = jax.jit(accumulate_sketch)(empty, {"lora_a": rows})
    np.testing.assert_allclose(
        found.products["lora_a"], sketched(x, width=4).products["lora_a"], rtol=1e-4, atol=1e-3
    )


def test_what_cannot_be_is_said():
    x = activations(6, np.ones(30))
    with pytest.raises(ValueError, match=r"lora_a: 4 directions hold .*expected 90.0%"):
        sketch_basis(sketched(x, width=4), energy=0.9)
    beside_nothing = sketched(np.stack([x, 0 * x]), width=4)
    with pytest.raises(ValueError, match=r"lora_a: 4 directions hold"):
        sketch_basis(beside_nothing, energy=0.9)
    with pytest.raises(ValueError, match=r"expected an energy share in \(0, 1\], got 1.5"):
        sketch_basis(sketched(x, width=4), energy=1.5)
    with pytest.raises(ValueError, match=r"expected activations \[\*\(\), \*tokens, 30\]"):
        accumulate_sketch(sketched(x, width=4), {"lora_a": jnp.ones((5, 29))})
    broken = sketched(np.where(x == x.max(), np.nan, x), width=4)
    with pytest.raises(ValueError, match="finite"):
        sketch_basis(broken, energy=0.5)
