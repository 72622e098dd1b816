import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.orthogonality import (
    activation_effect,
    closed_share,
    effective_rank,
    leak,
    max_leak,
    measure,
    orthonormal_basis,
    overlap_energy,
    principal_cosines,
    project_tree,
    removed_share,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def lora(seed, *stack):
    return {"lora_a": normal(seed, *stack, 9, 3), "lora_b": normal(seed + 50, *stack, 3, 5)}


def test_leak_equals_float64_for_each_layer_and_both_sides():
    tree, basis = lora(0, 2), orthonormal_basis(lora(1, 2), side="both")
    actual = jax.jit(leak)(tree, basis)
    a, b, qa, qb = (
        np.asarray(x, np.float64)
        for x in (tree["lora_a"], tree["lora_b"], basis["lora_a"], basis["lora_b"])
    )
    for layer in range(2):
        expected = np.linalg.norm(qa[layer].T @ a[layer]) / np.linalg.norm(a[layer])
        np.testing.assert_allclose(actual["lora_a"][layer], expected, rtol=1e-5)
        expected = np.linalg.norm(b[layer] @ qb[layer]) / np.linalg.norm(b[layer])
        np.testing.assert_allclose(actual["lora_b"][layer], expected, rtol=1e-5)
    largest = max(float(values.max()) for values in actual.values())
    assert float(jax.jit(max_leak)(tree, basis)) == pytest.approx(largest)


def test_leak_of_nothing_is_zero_but_nan_stays_nan():
    basis = orthonormal_basis(lora(1))
    zero = {"lora_a": jnp.zeros((9, 3)), "lora_b": jnp.zeros((3, 5))}
    assert float(max_leak(zero, basis)) == 0.0
    assert list(leak(zero, basis)) == ["lora_a"]
    assert float(max_leak(zero, jax.tree.map(lambda q: q[:, :0], basis))) == 0.0
    assert bool(jnp.isnan(max_leak(jax.tree.map(lambda x: x + jnp.nan, zero), basis)))


def test_leak_of_knowledge_itself_is_one_and_of_its_complement_zero():
    knowledge = lora(1)
    basis = orthonormal_basis(knowledge)
    assert float(max_leak(knowledge, basis)) == pytest.approx(1.0, abs=1e-6)
    assert float(max_leak(project_tree(lora(0), basis), basis)) < 3e-7


def test_removed_share_is_what_the_projection_takes_from_the_whole_update():
    updates, basis = lora(0), orthonormal_basis(lora(1))
    energy = lambda tree: sum(float(jnp.square(leaf).sum()) for leaf in jax.tree.leaves(tree))
    expected = 1.0 - energy(project_tree(updates, basis)) / energy(updates)
    assert 0.05 < expected < 0.95
    np.testing.assert_allclose(jax.jit(removed_share)(updates, basis), expected, rtol=1e-4)
    assert float(removed_share(jax.tree.map(jnp.zeros_like, updates), basis)) == 0.0


def test_principal_cosines_of_a_known_angle():
    turn = lambda angle: jnp.array([[1.0, 0.0], [0.0, np.cos(angle)], [0.0, np.sin(angle)]])
    cosines = principal_cosines({"lora_a": turn(0.0)}, {"lora_a": turn(0.3)})["lora_a"]
    np.testing.assert_allclose(cosines, [1.0, np.cos(0.3)], rtol=1e-6)
    assert float(cosines.max()) <= 1.0


def test_principal_cosines_and_energy_of_stacks_with_missing_directions():
    stack = jnp.stack([jnp.eye(6)[:, :3], jnp.eye(6)[:, :3].at[:, 2].set(0.0)])
    other = jnp.stack([jnp.eye(6)[:, 2:4], jnp.eye(6)[:, 1:3]])
    first, second = {"lora_a": stack, "lora_b": jnp.zeros((2, 4, 0))}, {"lora_a": other}
    cosines = jax.jit(principal_cosines)(first, second)
    assert list(cosines) == ["lora_a"]
    assert cosines["lora_a"].tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert overlap_energy(first, second)["lora_a"].tolist() == [0.5, 0.5]
    assert overlap_energy(second, first)["lora_a"].tolist() == pytest.approx([1 / 3, 0.5])


def test_random_subspaces_overlap_by_p_over_d():
    first = orthonormal_basis({"lora_a": normal(0, 500, 20)})
    second = orthonormal_basis({"lora_a": normal(1, 500, 30)})
    assert float(overlap_energy(first, second)["lora_a"]) == pytest.approx(20 / 500, rel=0.2)
    assert float(principal_cosines(first, second)["lora_a"][0]) < 0.45


def test_closed_matrices_are_those_without_a_free_direction():
    full, padded = jnp.eye(4), jnp.eye(4).at[:, 3].set(0.0)
    assert float(closed_share({"up": {"lora_a": jnp.stack([full, padded])}})) == 0.5
    assert float(closed_share({"up": {"lora_a": full, "lora_b": jnp.zeros((6, 0))}})) == 1.0
    assert float(closed_share({"up": {"lora_a": jnp.zeros((4, 0))}})) == 0.0


def test_effective_rank_of_what_is_left():
    basis = {"lora_a": jnp.eye(5)[:, :2], "lora_b": jnp.zeros((4, 0))}
    rank = lambda a: jax.jit(effective_rank)(
        {"lora_a": jnp.asarray(a), "lora_b": jnp.ones((a.shape[-1], 4))}, basis
    )
    assert float(rank(np.eye(5, dtype=np.float32))["lora_a"]) == pytest.approx(3.0, rel=1e-5)
    one_left = np.eye(5, 3, dtype=np.float32)
    assert float(rank(one_left)["lora_a"]) == pytest.approx(1.0, rel=1e-5)
    values = np.diag([9.0, 9.0, 3.0, 1.0, 0.0]).astype(np.float32)
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert float(rank(values)["lora_a"]) == pytest.approx(expected, rel=1e-5)
    assert list(rank(values)) == ["lora_a"]


def test_effective_rank_does_not_count_rounding():
    knowledge = {"lora_a": normal(0, 40, 3)}
    basis = orthonormal_basis(knowledge)
    assert float(effective_rank(knowledge, basis)["lora_a"]) == 0.0
    assert float(effective_rank({"lora_a": jnp.zeros((40, 3))}, basis)["lora_a"]) == 0.0


def dense_measures(a, q):
    """The four numbers of one matrix in float64, by orthonormalising it."""
    a, q = np.asarray(a, np.float64), np.asarray(q, np.float64)
    u, s, _ = np.linalg.svd(a, full_matrices=False)
    cosines = np.linalg.svd(q.T @ u[:, s > 1e-3 * s[0]], compute_uv=False)
    left = np.linalg.svd(a - q @ q.T @ a, compute_uv=False)
    left = left[left > 1e-3 * s[0]]
    shares = left / left.sum() if left.size else left
    energy = np.sum(cosines**2) / np.sum(s > 1e-3 * s[0])
    leaked = np.linalg.norm(q.T @ a) / np.linalg.norm(a)
    return leaked, cosines[0], energy, np.exp(-np.sum(shares * np.log(shares))) * (left.size > 0)


@pytest.mark.parametrize("case", ["generic", "rank deficient", "partly inside"])
def test_measures_equal_float64_on_orthonormalised_matrices(case):
    tree, basis = lora(0, 2), orthonormal_basis(lora(1, 2), side="both")
    if case == "rank deficient":
        tree["lora_a"] = tree["lora_a"].at[..., 2].set(2 * tree["lora_a"][..., 0])
    if case == "partly inside":
        tree["lora_a"] = tree["lora_a"].at[..., 1].set(basis["lora_a"][..., 0])
    found = jax.jit(measure)(tree, basis)
    each = [
        dense_measures(side(tree[name][layer]), basis[name][layer])
        for name, side in (("lora_a", np.asarray), ("lora_b", np.transpose))
        for layer in range(2)
    ]
    leaks, cosines, energies, ranks = np.array(each).T
    expected = [leaks.max(), cosines.max(), energies.mean(), ranks.mean()]
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_measures_of_a_complement_and_of_nothing():
    basis = orthonormal_basis(lora(1))
    found = measure(project_tree(lora(0), basis), basis)
    assert float(found.leak) < 3e-7
    assert float(found.cosine) < 1e-6
    assert float(found.overlap) < 1e-12
    assert [float(x) for x in measure({}, {})] == [0.0] * 4
    zeros = jax.tree.map(jnp.zeros_like, lora(0))
    assert [float(x) for x in measure(zeros, basis)] == [0.0] * 4


def test_no_matrix_of_the_width_of_the_model_is_decomposed():
    tree = {"lora_a": jnp.ones((2, 300, 4)), "lora_b": jnp.ones((2, 4, 5))}
    basis = {"lora_a": jnp.zeros((2, 300, 7)), "lora_b": jnp.zeros((2, 5, 0))}
    traced = str(jax.make_jaxpr(measure)(tree, basis))
    decomposed = [line for line in traced.splitlines() if "eigh[" in line or "svd[" in line]
    assert decomposed
    assert all(re.search(r"f32\[(2,)?4,4\]", line) for line in decomposed)
    control = str(jax.make_jaxpr(lambda a: jnp.linalg.svd(a))(tree["lora_a"]))
    assert any("300" in line for line in control.splitlines() if "svd[" in line)


def test_the_effect_on_activations_equals_the_dense_product():
    x, tree = np.random.default_rng(5).normal(size=(2, 30, 9)), lora(0, 2)
    covariance = {"lora_a": jnp.asarray(np.einsum("lte,ltd->led", x, x), jnp.float32)}
    found = jax.jit(activation_effect)(tree, covariance)
    product = x @ np.asarray(tree["lora_a"], np.float64) @ np.asarray(tree["lora_b"], np.float64)
    assert list(found) == ["lora_a"]
    np.testing.assert_allclose(found["lora_a"], np.linalg.norm(product, axis=(1, 2)), rtol=1e-5)
    # A basis of all that the data holds leaves no effect.
    whole = {"lora_a": jnp.stack([jnp.eye(9)] * 2), "lora_b": jnp.zeros((2, 5, 0))}
    left = activation_effect(project_tree(tree, whole), covariance)["lora_a"]
    assert float((left / found["lora_a"]).max()) < 1e-5
