import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medcare_jax.orthogonality import (
    accumulate_covariance,
    covariance_basis,
    extend_basis,
    narrow_basis,
    orthonormal_basis,
    product_basis,
    union,
)


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def float32(array):
    return jnp.asarray(array, jnp.float32)


def projector(basis):
    """The dense float64 projector Q Qᵀ."""
    q = np.asarray(basis, np.float64)
    return q @ np.swapaxes(q, -1, -2)


def assert_orthonormal(basis):
    """Each column has length 1 or is zero, and all are orthogonal."""
    q = np.asarray(basis, np.float64)
    gram = np.swapaxes(q, -1, -2) @ q
    diagonal = np.diagonal(gram, axis1=-2, axis2=-1).round()
    expected = np.einsum("...i,ij->...ij", diagonal, np.eye(q.shape[-1]))
    np.testing.assert_allclose(gram, expected, atol=3e-6)


@given(
    d=st.sampled_from([5, 17]),
    r=st.sampled_from([3, 7]),
    rank=st.integers(0, 3),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=20)
def test_basis_has_the_true_rank_and_spans_exactly_the_columns(d, r, rank, scale, seed):
    rank = min(rank, r)
    matrix = scale * random(seed, d, rank) @ random(seed + 1, rank, r)
    basis = orthonormal_basis({"lora_a": float32(matrix)})["lora_a"]
    assert basis.shape == (d, rank)
    assert basis.dtype == jnp.float32
    assert_orthonormal(basis)
    u = np.linalg.svd(matrix)[0][:, :rank]
    np.testing.assert_allclose(projector(basis), u @ u.T, atol=2e-4)


def test_zero_and_repeated_columns_add_no_direction():
    column = random(0, 9, 1)
    matrix = np.concatenate([column, 0 * column, 3 * column, random(1, 9, 1)], axis=1)
    assert orthonormal_basis({"lora_a": float32(matrix)})["lora_a"].shape == (9, 2)


def test_tolerance_decides_the_rank():
    matrix = float32(np.diag([1.0, 1e-2, 1e-4]))
    widths = {
        t: orthonormal_basis({"lora_a": matrix}, tolerance=t)["lora_a"].shape[-1]
        for t in (1e-1, 1e-3, 1e-5)
    }
    assert widths == {1e-1: 1, 1e-3: 2, 1e-5: 3}


def test_stacked_layers_of_different_rank_share_one_array():
    stack = np.stack([random(0, 6, 1) @ random(1, 1, 4), random(2, 6, 4), np.zeros((6, 4))])
    basis = orthonormal_basis({"lora_a": float32(stack)})["lora_a"]
    assert basis.shape == (3, 6, 4)
    assert (np.abs(basis).sum(axis=1) > 0).sum(axis=1).tolist() == [1, 4, 0]
    for layer, matrix in zip(basis, stack, strict=True):
        alone = orthonormal_basis({"lora_a": float32(matrix)})["lora_a"]
        np.testing.assert_allclose(projector(layer), projector(alone), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_basis_is_float32_whatever_the_input(dtype):
    basis = orthonormal_basis({"lora_a": jnp.asarray(random(0, 8, 3), dtype)})["lora_a"]
    assert basis.dtype == jnp.float32
    assert_orthonormal(basis)


def test_the_tree_as_a_literal():
    tree = {
        "gate_proj": {
            "lora_a": float32(random(0, 2, 7, 3)),
            "lora_b": float32(random(1, 2, 3, 5)),
            "router_kernel": jnp.ones((2, 7, 4)),
            "router_bias": jnp.ones((2, 4)),
        },
        "bias": jnp.ones(6),
    }
    shapes = lambda side: jax.tree.map(jnp.shape, orthonormal_basis(tree, side=side))
    router = {"router_kernel": (2, 7, 0), "router_bias": (2, 0)}
    assert shapes("input") == {
        "gate_proj": {"lora_a": (2, 7, 3), "lora_b": (2, 5, 0), **router},
        "bias": (6, 0),
    }
    assert shapes("output")["gate_proj"] == {"lora_a": (2, 7, 0), "lora_b": (2, 5, 3), **router}
    assert shapes("both")["gate_proj"] == {"lora_a": (2, 7, 3), "lora_b": (2, 5, 3), **router}


def test_output_side_spans_the_rows_of_b():
    b = random(0, 3, 5)
    basis = orthonormal_basis({"lora_b": float32(b)}, side="output")["lora_b"]
    np.testing.assert_allclose(projector(basis), np.linalg.pinv(b) @ b, atol=1e-5)


def test_under_jit_and_vmap_the_width_stays_and_the_span_is_the_same():
    stack = float32(np.stack([random(0, 6, 1) @ random(1, 1, 4), random(2, 6, 4)]))
    eager = orthonormal_basis({"lora_a": stack[0]})["lora_a"]
    jitted = jax.jit(orthonormal_basis)({"lora_a": stack[0]})["lora_a"]
    mapped = jax.vmap(lambda a: orthonormal_basis({"lora_a": a})["lora_a"])(stack)
    assert eager.shape == (6, 1)
    assert jitted.shape == (6, 4)
    np.testing.assert_allclose(projector(jitted), projector(eager), atol=1e-6)
    np.testing.assert_allclose(projector(mapped[0]), projector(eager), atol=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="found none named .*lora_a.*'kernel'"):
        orthonormal_basis({"up_proj": {"kernel": jnp.ones((3, 2))}})
    with pytest.raises(ValueError, match="lora_b"):
        orthonormal_basis({"lora_a": jnp.ones((3, 2))}, side="both")
    with pytest.raises(ValueError, match="up/lora_a: expected finite"):
        orthonormal_basis({"up": {"lora_a": jnp.full((3, 2), jnp.nan)}})
    with pytest.raises(ValueError, match="expected up/lora_b beside up/lora_a"):
        product_basis({"up": {"lora_a": jnp.ones((3, 2))}})
    with pytest.raises(ValueError, match="energy share.*1.5"):
        product_basis({"lora_a": jnp.ones((3, 2)), "lora_b": jnp.ones((2, 3))}, energy=1.5)
    with pytest.raises(ValueError, match="lora_a: expected a covariance"):
        covariance_basis({"lora_a": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="expected activations"):
        accumulate_covariance(jnp.zeros((3, 3)), jnp.ones((4, 2)))


def test_nan_under_jit_spoils_the_basis_instead_of_emptying_it():
    basis = jax.jit(orthonormal_basis)({"lora_a": jnp.full((3, 2), jnp.nan)})["lora_a"]
    assert bool(jnp.isnan(basis).any())


@given(energy=st.sampled_from([0.3, 0.9, 0.999, 1.0]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_product_basis_equals_the_svd_of_the_dense_product(energy, seed):
    a = random(seed, 11, 4) * np.array([1.0, 3.0, 0.3, 0.0])
    b = random(seed + 1, 4, 7)
    basis = product_basis({"lora_a": float32(a), "lora_b": float32(b)}, energy=energy, side="both")
    u, values, vt = np.linalg.svd(a @ b)
    captured = np.cumsum(values**2) / np.sum(values**2)
    width = 3 if energy == 1.0 else int(np.searchsorted(captured, energy)) + 1
    assert basis["lora_a"].shape == (11, width)
    assert basis["lora_b"].shape == (7, width)
    assert_orthonormal(basis["lora_a"])
    np.testing.assert_allclose(projector(basis["lora_a"]), u[:, :width] @ u[:, :width].T, atol=1e-3)
    np.testing.assert_allclose(projector(basis["lora_b"]), vt[:width].T @ vt[:width], atol=1e-3)


def test_product_basis_ignores_directions_that_b_silences():
    tree = {"lora_a": jnp.eye(4, 3), "lora_b": float32(np.diag([1.0, 0.0, 0.5]))}
    expected = np.diag([1.0, 0.0, 1.0, 0.0])
    basis = product_basis(tree, energy=1.0)["lora_a"]
    np.testing.assert_allclose(projector(basis), expected, atol=1e-6)
    assert product_basis({**tree, "lora_b": jnp.zeros((3, 3))})["lora_a"].shape == (4, 0)


def test_product_never_becomes_dense():
    tree = {"lora_a": jnp.ones((300, 4)), "lora_b": jnp.ones((4, 500))}
    traced = str(jax.make_jaxpr(product_basis)(tree))
    assert "300,500" not in traced
    assert "500,300" not in traced


@given(energy=st.sampled_from([0.5, 0.95, 1.0]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_covariance_basis_equals_the_svd_of_the_activations(energy, seed):
    x = random(seed, 40, 6) * np.array([9.0, 5.0, 3.0, 2.0, 1.0, 0.0])
    covariance = accumulate_covariance({"lora_a": jnp.zeros((6, 6))}, {"lora_a": float32(x)})
    basis = covariance_basis(covariance, energy=energy)["lora_a"]
    _, values, vt = np.linalg.svd(x, full_matrices=False)
    captured = np.cumsum(values**2) / np.sum(values**2)
    width = 5 if energy == 1.0 else int(np.searchsorted(captured, energy)) + 1
    assert basis.shape == (6, width)
    assert_orthonormal(basis)
    np.testing.assert_allclose(projector(basis), vt[:width].T @ vt[:width], atol=1e-3)


@given(energy=st.sampled_from([0.3, 0.5, 0.8, 0.95]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_a_narrower_basis_is_that_of_its_energy(energy, seed):
    x = random(seed, 3, 40, 6) * np.array([9.0, 5.0, 3.0, 2.0, 1.0, 0.0])
    x[1, :, :4] = 0  # of another rank than its neighbours
    covariance = {"lora_a": accumulate_covariance(jnp.zeros((3, 6, 6)), float32(x))}
    wide = covariance_basis(covariance, energy=0.95)
    found = narrow_basis(wide, covariance, energy=energy)["lora_a"]
    expected = covariance_basis(covariance, energy=energy)["lora_a"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_covariance_streams_stacks_and_leaves_padding_out():
    x = random(0, 2, 3, 5, 4)  # [l, b, t, d]
    whole = accumulate_covariance(jnp.zeros((2, 4, 4)), float32(x))
    np.testing.assert_allclose(whole, np.einsum("lbtd,lbte->lde", x, x), rtol=1e-5)
    streamed = jnp.zeros((2, 4, 4))
    for batch in np.split(x, 3, axis=1):
        padded = np.concatenate([batch, np.zeros((2, 1, 2, 4))], axis=2)
        streamed = jax.jit(accumulate_covariance)(streamed, float32(padded))
    np.testing.assert_allclose(streamed, whole, rtol=1e-5)


def test_covariance_of_sharded_activations_is_the_same():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jnp.asarray(random(0, 16, 3, 4), jnp.bfloat16)
    expected = accumulate_covariance(jnp.zeros((4, 4)), x)
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    total = jax.device_put(jnp.zeros((4, 4)), NamedSharding(mesh, PartitionSpec()))
    actual = jax.jit(accumulate_covariance)(total, sharded)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@given(
    p=st.sampled_from([0, 3]),
    q=st.sampled_from([0, 2]),
    shared=st.sampled_from([0, 1]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=12)
def test_union_spans_both(p, q, shared, seed):
    common = random(seed, 11, shared)
    parts = [np.concatenate([common, random(seed + i, 11, n)], axis=1) for i, n in ((1, p), (2, q))]
    first, second = (orthonormal_basis({"lora_a": float32(part)}) for part in parts)
    grown = union(first, second)["lora_a"]
    assert grown.shape == (11, shared + p + q)
    assert_orthonormal(grown)
    for part in parts:
        np.testing.assert_allclose(projector(grown) @ part, part, atol=1e-4)


def test_union_is_by_path_and_saturates_at_the_whole_space():
    wide = {"up": {"lora_a": jnp.eye(3)[:, :2]}, "down": {"lora_a": jnp.eye(4)[:, :1]}}
    other = {"up": {"lora_a": jnp.eye(3)[:, 1:], "lora_b": jnp.zeros((5, 0))}}
    grown = union(wide, other)
    assert jax.tree.map(jnp.shape, grown) == {
        "up": {"lora_a": (3, 3), "lora_b": (5, 0)},
        "down": {"lora_a": (4, 1)},
    }
    with pytest.raises(ValueError, match="width only"):
        union({"lora_a": jnp.eye(3)}, {"lora_a": jnp.eye(4)})
    with pytest.raises(ValueError, match="in neither"):
        union({"lora_a": jnp.eye(3)}, {"lora_a": {"x": jnp.eye(3)}})


def test_extend_basis_fills_what_is_free_and_refuses_what_is_lost():
    tree = {"up": {"lora_a": jnp.ones((3, 2)), "lora_b": jnp.ones((2, 5))}}
    shapes = jax.eval_shape(lambda: tree)
    assert jax.tree.map(jnp.shape, extend_basis({}, shapes)) == {
        "up": {"lora_a": (3, 0), "lora_b": (5, 0)}
    }
    basis = orthonormal_basis(tree)
    assert extend_basis(basis, tree)["up"]["lora_a"] is basis["up"]["lora_a"]
    with pytest.raises(ValueError, match="'upp/lora_a'"):
        extend_basis({"upp": {"lora_a": jnp.eye(3)}}, tree)
