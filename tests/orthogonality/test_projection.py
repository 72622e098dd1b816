import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medcare_jax.orthogonality import (
    extend_basis,
    max_leak,
    orthonormal_basis,
    project_tree,
    project_updates,
    removed_share,
    retract,
)

EPS = float(np.finfo(np.float32).eps)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def lora(seed, *stack, d=16, r=3, out=5):
    return {"up": {"lora_a": normal(seed, *stack, d, r), "lora_b": normal(seed, *stack, r, out)}}


def dense(leaf, q, side):
    """The oracle: the dense float64 (I - Q Qᵀ) on the left or on the right."""
    leaf, q = np.asarray(leaf, np.float64), np.asarray(q, np.float64)
    complement = np.eye(q.shape[-2]) - q @ np.swapaxes(q, -1, -2)
    return complement @ leaf if side == "input" else leaf @ complement


# Algebra.


@st.composite
def cases(draw):
    """Two updates and the basis of both sides of a knowledge of some true rank."""
    d, stack = draw(st.sampled_from([(6, ()), (16, (2,))]))
    rank, is_silent = draw(st.sampled_from([0, 1, 4])), draw(st.booleans())
    random = np.random.default_rng(draw(st.integers(0, 999)))
    product = lambda n, m: random.normal(size=(*stack, n, rank)) @ random.normal(size=(rank, m))
    a, b = product(d, 5), product(4, 7)
    if is_silent:
        a[..., 0] = 0.0
    leaves = {"lora_a": jnp.asarray(a, jnp.float32), "lora_b": jnp.asarray(b, jnp.float32)}
    updates = [lora(draw(st.integers(0, 999)), *stack, d=d, out=7) for _ in range(2)]
    return *updates, orthonormal_basis({"up": leaves}, side="both")


def close(actual, expected, scale=1.0):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=30 * EPS * scale)


@given(cases())
@settings(deadline=None, max_examples=25)
def test_algebra_of_the_projector(case):
    updates, others, basis = case
    projected = project_tree(updates, basis)
    # Equals the dense float64 oracle, on each side.
    for leaf, side in (("lora_a", "input"), ("lora_b", "output")):
        expected = dense(updates["up"][leaf], basis["up"][leaf], side)
        close(projected["up"][leaf], expected, 4)
    # Nothing is left inside, nothing grew, and doing it again changes nothing.
    assert float(max_leak(projected, basis)) < 1e-6
    assert float(optax.tree.norm(projected)) <= float(optax.tree.norm(updates)) * (1 + 4 * EPS)
    close(project_tree(projected, basis), projected)
    # Linear.
    combined = jax.tree.map(lambda x, y: 2.0 * x - 3.0 * y, updates, others)
    separate = jax.tree.map(lambda x, y: 2.0 * x - 3.0 * y, projected, project_tree(others, basis))
    close(project_tree(combined, basis), separate, 10)


@given(cases(), st.sampled_from([0.0, 0.25, 1.0]))
@settings(deadline=None, max_examples=12)
def test_strength_interpolates(case, strength):
    updates, _, basis = case
    hard = project_tree(updates, basis)
    expected = jax.tree.map(lambda u, p: (1 - strength) * u + strength * p, updates, hard)
    soft = project_tree(updates, basis, strength=strength)
    close(soft, expected, 4)
    if strength == 0.0:
        assert all(
            bool((x == y).all())
            for x, y in zip(jax.tree.leaves(soft), jax.tree.leaves(updates), strict=True)
        )


def test_empty_knowledge_and_other_leaves_are_left_bit_for_bit():
    updates = {**lora(0), "router_kernel": normal(1, 6, 4), "router_bias": normal(2, 4)}
    silent = jax.tree.map(jnp.zeros_like, updates)
    for basis in (orthonormal_basis(silent, side="both"), extend_basis({}, updates)):
        projected = project_tree(updates, basis)
        assert all(x is y for x, y in zip(*map(jax.tree.leaves, (projected, updates)), strict=True))


def test_any_other_weight_is_constrained_along_its_inputs():
    kernel, bias = normal(0, 6, 4), normal(1, 6)
    q = orthonormal_basis({"lora_a": normal(2, 6, 2)})["lora_a"]
    projected = project_tree({"kernel": kernel, "bias": bias}, {"kernel": q, "bias": q})
    close(projected["kernel"], dense(kernel, q, "input"), 4)
    close(projected["bias"], dense(bias, q, "input"), 4)


def test_second_pass_finds_what_a_basis_of_finite_precision_misses():
    q = orthonormal_basis({"lora_a": normal(0, 64, 8)})
    rough = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), q)
    assert float(max_leak(project_tree({"lora_a": normal(1, 64, 3)}, rough), rough)) < 1e-4
    close(project_tree({"lora_a": q["lora_a"]}, q)["lora_a"], jnp.zeros((64, 8)), 0.1)


def test_float64_updates_keep_their_precision():
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 4)))[0]
    with jax.enable_x64(True):
        updates = {"lora_a": jnp.asarray(np.random.default_rng(1).normal(size=(16, 3)))}
        projected = project_tree(updates, {"lora_a": jnp.asarray(q)})["lora_a"]
    assert projected.dtype == np.float64
    np.testing.assert_allclose(q.T @ np.asarray(projected), 0.0, atol=1e-15)


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_strength_out_of_range_is_refused(strength):
    with pytest.raises(ValueError, match=r"strength in \[0, 1\]"):
        project_updates(strength=strength)
    with pytest.raises(ValueError, match=r"strength in \[0, 1\]"):
        project_tree({}, {}, strength=jnp.float32(strength))


# Contract of optax transforms.


def knowledge_basis():
    return orthonormal_basis(lora(9), side="both")


def test_basis_is_required_by_name_and_extra_arguments_are_ignored():
    tx, updates, basis = project_updates(), lora(0), knowledge_basis()
    with pytest.raises(TypeError, match="basis"):
        tx.update(updates, tx.init(updates))
    with pytest.raises(TypeError):
        tx.update(updates, tx.init(updates), updates, basis)
    actual, state = tx.update(updates, tx.init(updates), basis=basis, value=1.0, loss_fn=None)
    close(actual, project_tree(updates, basis))
    assert float(state.removed) == pytest.approx(float(removed_share(updates, basis)))


def test_an_update_without_basis_is_refused():
    tx, updates = project_updates(), lora(0)
    with pytest.raises(ValueError, match=r"none for \['up/lora_b'\]"):
        tx.update(updates, tx.init(updates), basis={"up": {"lora_a": jnp.zeros((16, 0))}})


NAMES = ["project", "retract", "chain"]


@pytest.fixture
def transforms(relaxed):
    adamw = relaxed(optax.adamw(1e-2))
    return {
        "project": project_updates(),
        "retract": retract(every_steps=2),
        "chain": optax.chain(adamw, project_updates(), retract(every_steps=2)),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtype_is_preserved_and_state_is_stable_through_cond(transforms, name, dtype):
    tx = transforms[name]
    params = jax.tree.map(lambda x: x.astype(dtype), lora(0))

    @jax.jit
    def step(params, state, basis, is_on):
        updates, state = jax.lax.cond(
            is_on,
            lambda: tx.update(params, state, params, basis=basis),
            lambda: (params, state),
        )
        return optax.apply_updates(params, updates), state

    state, basis = tx.init(params), knowledge_basis()
    for is_on in (True, False, True):
        new_params, new_state = step(params, state, basis, is_on)
        assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)
        assert jax.tree.map(jax.typeof, new_params) == jax.tree.map(jax.typeof, params)
        params, state = new_params, new_state


@pytest.mark.parametrize("name", NAMES)
def test_init_is_abstract_and_its_state_maps(transforms, name):
    tx, params = transforms[name], lora(0)
    shapes = jax.eval_shape(tx.init, params)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, tx.init(params))
    assert tx.init(jax.eval_shape(lambda: params)) is not None
    doubled = optax.tree.map_params(tx, lambda x: x + 1, tx.init(params))
    assert jax.tree.structure(doubled) == jax.tree.structure(tx.init(params))


def test_one_compilation_serves_all_steps_and_all_bases_of_a_width(transforms):
    tx = transforms["chain"]
    step = jax.jit(lambda g, s, p, basis: tx.update(g, s, p, basis=basis))
    params = lora(0)
    state = tx.init(params)
    for seed in range(3):
        _, state = step(params, state, params, orthonormal_basis(lora(seed), side="both"))
    assert step._cache_size() == 1


def test_the_basis_is_an_argument_and_never_a_constant(transforms):
    tx, params, basis = transforms["chain"], lora(0), knowledge_basis()
    state = tx.init(params)
    as_argument = jax.make_jaxpr(lambda g, s, p, q: tx.update(g, s, p, basis=q))
    closed_over = jax.make_jaxpr(lambda g, s, p: tx.update(g, s, p, basis=basis))
    largest = lambda jaxpr: max((np.size(c) for c in jaxpr.consts), default=0)
    assert largest(as_argument(params, state, params, basis)) <= 1
    assert largest(closed_over(params, state, params)) > 1  # The test sees what it looks for.


def test_partition_with_and_without_masked_basis():
    params = {**lora(0), "scale": normal(1, 4)}
    basis = extend_basis(knowledge_basis(), params)
    labels = {"up": {"lora_a": "hold", "lora_b": "hold"}, "scale": "free"}
    inner = {"hold": optax.chain(optax.sgd(1.0), project_updates()), "free": optax.sgd(1.0)}
    expected = jax.tree.map(jnp.negative, params)
    expected = {**project_tree({"up": expected["up"]}, basis), "scale": expected["scale"]}
    for is_masked in (True, False):
        tx = optax.partition(inner, labels, mask_compatible_extra_args=is_masked)
        actual, _ = jax.jit(tx.update)(params, tx.init(params), params, basis=basis)
        close(actual, expected)


def test_multi_steps_and_apply_if_finite(transforms, relaxed):
    params, basis = lora(0), knowledge_basis()
    # Not its gradient_transformation(): that one takes no extra arguments.
    steps = optax.MultiSteps(transforms["chain"], every_k_schedule=2)
    tx = relaxed(optax.GradientTransformationExtraArgs(steps.init, steps.update))
    update = jax.jit(tx.update)
    first, state = update(params, tx.init(params), params, basis=basis)
    assert float(optax.tree.norm(first)) == 0.0
    second, _ = update(lora(1), state, params, basis=basis)
    assert float(optax.tree.norm(second)) > 0.0

    tx = optax.apply_if_finite(project_updates(), max_consecutive_errors=2)
    update = jax.jit(tx.update)
    actual, state = update(params, tx.init(params), params, basis=basis)
    close(actual, project_tree(params, basis))
    poisoned, _ = update(jax.tree.map(lambda x: x * jnp.nan, params), state, params, basis=basis)
    assert float(optax.tree.norm(poisoned)) == 0.0


def test_strength_can_be_injected_and_scheduled():
    params, basis = lora(0), knowledge_basis()
    tx = optax.inject_hyperparams(project_updates)(strength=lambda n: 0.5 * n.astype(jnp.float32))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for strength in (0.0, 0.5, 1.0):
        actual, state = update(params, state, params, basis=basis)
        close(actual, project_tree(params, basis, strength=strength))


def test_vmap_over_strengths_and_seeds_equals_the_loop(relaxed):
    def train(strength, knowledge, target):
        tx = optax.chain(relaxed(optax.adam(1e-1)), project_updates(strength=strength))
        basis = orthonormal_basis({"lora_a": knowledge})
        params = {"lora_a": jnp.ones((6, 3))}

        def step(carry, _):
            params, state = carry
            gradient = jax.grad(lambda p: jnp.square(p["lora_a"] - target).sum())(params)
            updates, state = tx.update(gradient, state, params, basis=basis)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=5)[0][0]["lora_a"]

    strengths = jnp.array([0.0, 0.5, 1.0])
    knowledge, target = normal(0, 2, 6, 2), normal(1, 2, 6, 3)  # Two seeds.
    over_seeds = jax.vmap(train, (None, 0, 0))
    sweep = jax.jit(jax.vmap(over_seeds, (0, None, None)))(strengths, knowledge, target)
    assert sweep.shape == (3, 2, 6, 3)
    one = jax.jit(train)
    for i, strength in enumerate(strengths):
        for j in range(2):
            close(sweep[i, j], one(strength, knowledge[j], target[j]), 100)
    assert float(jnp.abs(sweep[0] - sweep[2]).max()) > 1e-2


# Retraction.


def test_retraction_moves_the_parameters_every_n_steps_only():
    tx, basis = retract(every_steps=3), {**knowledge_basis(), "free": jnp.zeros((4, 0))}
    params = {**lora(0), "free": normal(5, 4)}
    still = jax.tree.map(lambda x: 1e-3 * x, params)
    state, update = tx.init(params), jax.jit(tx.update)
    leaks = []
    for _ in range(6):
        updates, state = update(still, state, params, basis=basis)
        assert (updates["free"] == still["free"]).all()
        leaks.append(float(max_leak(optax.apply_updates(params, updates), basis)))
    assert int(state.step) == 6
    assert all(leaks[i] < 1e-6 for i in (2, 5))
    assert all(leaks[i] > 0.1 for i in (0, 1, 3, 4))


def test_retraction_needs_params_and_a_period():
    tx = retract(every_steps=1)
    with pytest.raises(ValueError, match="got None"):
        tx.update(lora(0), tx.init(lora(0)), basis=knowledge_basis())
    with pytest.raises(ValueError, match="got 0"):
        retract(every_steps=0)


# Sharding.

LAYOUTS = {
    "contracted axis": PartitionSpec(None, "x", None),
    "rank axis": PartitionSpec(None, None, "x"),
    "layers": PartitionSpec("x", None, None),
    "replicated": PartitionSpec(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_basis_and_updates_gives_the_same_numbers(layout):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    updates = {"lora_a": normal(0, 8, 16, 8)}
    basis = orthonormal_basis({"lora_a": normal(1, 8, 16, 8)})
    expected = project_tree(updates, basis)
    tx = optax.chain(project_updates(), retract(every_steps=1))
    place = lambda tree: jax.device_put(tree, NamedSharding(mesh, LAYOUTS[layout]))
    placed, placed_basis = place(updates), place(basis)
    actual, _ = jax.jit(tx.update)(placed, tx.init(placed), placed, basis=placed_basis)
    close(actual, jax.tree.map(lambda p, u: p - (u - p), expected, updates), 100)
    projected = jax.jit(project_tree)(placed, placed_basis)
    close(projected, expected)
    assert projected["lora_a"].sharding.is_equivalent_to(placed["lora_a"].sharding, 3)


@pytest.mark.parametrize("layout", ["layers", "replicated"])
def test_explicit_mesh(layout):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    updates = {"lora_a": normal(0, 8, 16, 8)}
    basis = orthonormal_basis({"lora_a": normal(1, 8, 16, 8)})
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, LAYOUTS[layout])
        placed = jax.device_put(updates, sharding)
        placed_basis = jax.device_put(basis, sharding)
        actual = jax.jit(project_tree)(placed, placed_basis)
        assert jax.typeof(actual["lora_a"]) == jax.typeof(placed["lora_a"])
    close(actual, project_tree(updates, basis))
