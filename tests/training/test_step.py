"""The step against one written out: loss, gradient, constraint, dropout, mesh, donation."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medcare_jax.data.packing import Batch
from medcare_jax.orthogonality import measure
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, digest, flatten, merge, unflatten
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import batch_sharding, make_mesh, tree_shardings
from medcare_jax.training.loop import jit_step
from medcare_jax.training.step import accumulate
from tests.training.cases import (
    DA,
    DA_OPEN,
    MKA,
    RATES,
    assert_trees_close,
    make_batch,
    make_case,
    sequences,
)


@pytest.fixture(scope="module")
def batch():
    return make_batch(sequences())


def is_label(batch):
    """Where the token to come is a target, [b, t - 1]; by definition of the batch."""
    same = batch.segments[:, 1:] == batch.segments[:, :-1]
    return batch.is_target[:, 1:] & same & (batch.segments[:, 1:] > 0)


def dense_losses(case, batch):
    """A function of the learning trees: -log p of each next token, over whole logits."""

    def losses(learning):
        params = {"params": merge({**case.frozen, **learning})}
        hidden = case.decoder.apply(params, batch.tokens, batch.positions, batch.segments)
        logits = case.decoder.apply(params, hidden, method="unembed")[:, :-1]
        scores = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(scores, jnp.asarray(batch.tokens)[:, 1:, None], -1)[..., 0]

    return losses


class Oracle(NamedTuple):
    loss: float
    losses: np.ndarray
    gradient: Any


@pytest.fixture(scope="module")
def oracle(batch):
    """MKA's loss as the mean of the dense cross-entropy over targets, its terms and gradient."""
    case = make_case()

    def mean(learning):
        losses = dense_losses(case, batch)(learning)
        return jnp.sum(losses, where=is_label(batch)) / float(is_label(batch).sum()), losses

    compute = jax.jit(jax.value_and_grad(mean, has_aux=True))
    (loss, losses), gradient = compute(case.state.learning)
    return Oracle(float(loss), np.asarray(losses), gradient)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_loss_and_gradient_are_the_mean_over_targets_however_cut(batch, oracle, accumulation):
    case = make_case(descends=True, accumulation=accumulation)
    state, (metrics,) = case.run(batch)
    np.testing.assert_allclose(metrics.loss, oracle.loss, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, optax.tree.norm(oracle.gradient), rtol=1e-5)
    assert_trees_close(case.gradient(batch), oracle.gradient, rtol=2e-5, atol=2e-7)
    assert float(metrics.targets) == is_label(batch).sum()
    assert float(metrics.tokens) == (batch.segments > 0).sum()
    assert state.step == 1


def test_the_batch_tells_a_token_mean_from_a_mean_of_means(batch, oracle):
    means = [oracle.losses[i::2][is_label(batch)[i::2]].mean() for i in range(2)]
    assert abs(np.mean(means) - oracle.loss) > 1e-3
    assert (batch.segments == 0).all(axis=1).any(), "one row should be padding only"


def test_two_steps_are_clipping_and_adamw_by_hand(batch, oracle):
    case = make_case()
    state, metrics = case.run(batch, batch)
    start, gradient = flatten(case.state.learning), flatten(oracle.gradient)
    norm = float(optax.tree.norm(oracle.gradient))
    np.testing.assert_allclose(metrics[0].grad_norm, norm, rtol=1e-5)  # before clipping
    share = min(1.0, RATES.clip_norm / norm)
    assert share < 1.0
    for path, found in flatten(case.run(batch)[0].learning).items():
        g = np.asarray(gradient[path], np.float64) * share
        p = np.asarray(start[path], np.float64)
        mean, square = (1 - RATES.adam_b1) * g, (1 - RATES.adam_b2) * g**2
        mean, square = mean / (1 - RATES.adam_b1), square / (1 - RATES.adam_b2)
        update = mean / (np.sqrt(square) + 1e-8) + RATES.weight_decay * p
        # Where the gradient is mere rounding, Adam makes a whole step of its sign.
        is_clear = (np.abs(g) > 1e-6) | (g == 0)
        assert is_clear.mean() > 0.95
        expected = p - RATES.learning_rate * update
        np.testing.assert_allclose(found[is_clear], expected[is_clear], rtol=0, atol=2e-6)
    assert metrics[1].loss < metrics[0].loss
    assert state.step == 2


def test_a_packed_batch_is_the_token_weighted_mean_of_its_sequences(batch):
    case = make_case(descends=True)
    alone = []
    for example in [example for row in sequences() for example in row]:
        _, (metrics,) = case.run(make_batch([[example], *[[]] * 7]))
        alone.append((float(metrics.loss), float(metrics.targets)))
    losses, targets = np.array(alone).T
    _, (metrics,) = case.run(batch)
    assert len(losses) == 11
    assert targets.sum() == metrics.targets
    np.testing.assert_allclose(metrics.loss, np.average(losses, weights=targets), rtol=2e-6)


def test_a_batch_without_a_target_changes_nothing():
    case = make_case(descends=True)
    state, (metrics,) = case.run(make_batch([[]] * 8))
    assert (metrics.loss, metrics.grad_norm, metrics.targets) == (0, 0, 0)
    assert digest(state.learning) == digest(case.state.learning)


def with_infinite(case, leaf):
    """The frozen trees with one base weight that is not a number to compute with."""
    flat = flatten(case.frozen[BASE])
    flat[leaf] = jnp.full_like(flat[leaf], jnp.inf)
    return {**case.frozen, BASE: unflatten(flat)}


@pytest.mark.parametrize(("stage", "kind"), [(MKA, "none"), (DA, "projection")])
def test_a_batch_that_gives_no_number_leaves_no_trace_to_the_bit(batch, stage, kind):
    case = make_case(stage, kind=kind)
    bad = with_infinite(case, "model/norm/scale")
    before, _ = case.compiled(case.state, case.frozen, batch)
    after, metrics = case.compiled(before, bad, batch)
    assert not np.isfinite(metrics.loss)
    assert (after.step, after.skipped, metrics.skipped) == (before.step + 1, 1, 1)
    assert_same_bits((after.learning, after.optimizer), (before.learning, before.optimizer))
    # And the next good step is the one that it would have been.
    followed, _ = case.compiled(after, case.frozen, batch)
    expected, _ = case.compiled(before, case.frozen, batch)
    assert_same_bits(
        (followed.learning, followed.optimizer), (expected.learning, expected.optimizer)
    )


def test_a_finite_loss_with_an_infinite_gradient_is_left_out(batch):
    case = make_case(descends=True)
    # B of 0 hides an A that has grown past all bounds from the loss, not from the gradient of B.
    grow = {"lora_a": 1e30, "lora_b": 0.0}
    learning = unflatten(
        {
            path: leaf * grow.get(path.split("/")[-1], 1.0)
            if path.startswith("knowledge")
            else leaf
            for path, leaf in flatten(case.state.learning).items()
        }
    )
    state = case.state._replace(learning=learning)
    after, metrics = case.compiled(state, case.frozen, batch)
    assert np.isfinite(metrics.loss)
    assert not np.isfinite(metrics.grad_norm)
    assert after.skipped == 1
    assert_same_bits(after.learning, state.learning)


def test_an_update_that_is_no_number_leaves_no_trace(batch):
    case = make_case()
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan if leaf.ndim else leaf, case.state.optimizer)
    state = case.state._replace(optimizer=broken)
    after, metrics = case.compiled(state, case.frozen, batch)
    assert np.isfinite(metrics.loss)
    assert np.isfinite(metrics.grad_norm)
    assert after.skipped == 1
    assert_same_bits(after.learning, state.learning)


def assert_same_bits(found, expected):
    """Raises unless two trees are equal to the bit."""
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_only_the_alignment_learns_in_da(batch):
    case = make_case(DA, kind="projection")
    assert set(case.frozen) == {BASE, KNOWLEDGE}
    before = digest(case.frozen[BASE]), digest(case.frozen[KNOWLEDGE])
    state, metrics = case.run(batch, batch, batch)
    assert (digest(case.frozen[BASE]), digest(case.frozen[KNOWLEDGE])) == before
    assert set(state.learning) == {ALIGNMENT}
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(state.learning[ALIGNMENT]))
    assert all(np.any(x != y) for x, y in leaf_pairs(state.learning, case.state.learning))
    assert max(m.leak for m in metrics) < 1e-6


def leaf_pairs(first, second):
    """Leaves of two trees side by side."""
    return list(zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def test_without_freezing_the_knowledge_learns_too(batch, unconstrained):
    assert set(unconstrained.frozen) == {BASE}
    state, _ = unconstrained.run(batch)
    assert set(state.learning) == {KNOWLEDGE, ALIGNMENT}
    assert all(np.any(x != y) for x, y in leaf_pairs(state.learning, unconstrained.state.learning))


def test_the_constraint_is_measured_in_every_step(batch):
    case = make_case(DA, kind="projection")
    state, (metrics,) = case.run(batch)
    expected = measure(state.learning, state.basis)
    np.testing.assert_allclose(metrics.leak, expected.leak, atol=1e-7)
    found = (metrics.cosine, metrics.overlap, metrics.rank)
    np.testing.assert_allclose(found, expected[1:], rtol=1e-4, atol=1e-6)
    assert 0.05 < metrics.removed < 0.95
    _, (free,) = make_case(DA, kind="none").run(batch)
    assert (free.removed, free.leak > 0.1, free.cosine > 0.3) == (0, True, True)
    _, (mka,) = make_case().run(batch)
    assert (mka.leak, mka.removed, mka.cosine, mka.overlap, mka.rank) == (0, 0, 0, 0, 0)


def distance_moved(batch, kind):
    """How far A goes in twenty steps, as a share of its norm."""
    make_case.cache_clear()  # A case keeps its compiled step, here of a patched module.
    case = make_case(DA, kind=kind, penalty_weight=100.0)
    state, _ = case.run(*[batch] * 20)
    start, end = (flatten(each.learning[ALIGNMENT]) for each in (case.state, state))
    paths = [path for path in start if path.endswith("lora_a")]
    moved = sum(float(jnp.square(end[p] - start[p]).sum()) for p in paths)
    return (moved / sum(float(jnp.square(start[p]).sum()) for p in paths)) ** 0.5


def test_a_penalty_beside_the_projection_does_not_freeze_what_may_move(batch, monkeypatch):
    alone = distance_moved(batch, "projection")
    assert distance_moved(batch, "projection+penalty") > 0.9 * alone
    # What the projection removes anyway fills Adam's moments and the clipping norm.
    monkeypatch.setattr("medcare_jax.training.step.project_tree", lambda tree, *_, **__: tree)
    assert distance_moved(batch, "projection+penalty") < 0.7 * alone
    make_case.cache_clear()


def signs(trees):
    """The slope of sum |A_K^T A_O| with respect to both A, from the formula."""
    slopes = {}
    knowledge, alignment = flatten(trees[KNOWLEDGE]), flatten(trees[ALIGNMENT])
    for path in alignment:
        a_k, a_o = np.asarray(knowledge[path]), np.asarray(alignment[path])
        is_a = path.endswith("lora_a")
        sign = np.sign(np.swapaxes(a_k, -1, -2) @ a_o) if is_a else 0
        slopes[f"{ALIGNMENT}/{path}"] = a_k @ sign if is_a else np.zeros_like(a_o)
        slopes[f"{KNOWLEDGE}/{path}"] = (
            a_o @ np.swapaxes(sign, -1, -2) if is_a else np.zeros_like(a_k)
        )
    return slopes


WEIGHT = 0.7


@pytest.fixture(scope="module")
def penalised():
    """DA as in the paper, the knowledge learning too, with lambda 0.7."""
    return make_case(DA_OPEN, kind="penalty", penalty_weight=WEIGHT, descends=True)


@pytest.fixture(scope="module")
def unconstrained():
    """The same without the penalty."""
    return make_case(DA_OPEN, descends=True)


def test_the_penalty_has_a_gradient_and_it_is_the_sign_formula(batch, penalised, unconstrained):
    whole, nll = flatten(penalised.gradient(batch)), flatten(unconstrained.gradient(batch))
    for path, slope in signs(penalised.state.learning).items():
        np.testing.assert_allclose(whole[path], nll[path] + WEIGHT * slope, atol=2e-5)
        assert path.endswith("lora_b") or np.abs(whole[path] - nll[path]).max() > 0.1


def test_the_penalty_is_measured_beside_the_loss(batch, penalised, unconstrained):
    _, (metrics,) = penalised.run(batch)
    _, (quiet,) = unconstrained.run(batch)
    learning = penalised.state.learning
    knowledge, alignment = flatten(learning[KNOWLEDGE]), flatten(learning[ALIGNMENT])
    pairs = [(knowledge[p], alignment[p]) for p in alignment if p.endswith("lora_a")]
    expected = sum(np.abs(np.swapaxes(k, -1, -2) @ np.asarray(o)).sum() for k, o in pairs)
    np.testing.assert_allclose(metrics.penalty, expected, rtol=1e-5)
    gradient = penalised.gradient(batch)
    np.testing.assert_allclose(metrics.grad_norm, optax.tree.norm(gradient), rtol=1e-4)
    assert metrics.grad_norm > 1.1 * quiet.grad_norm
    np.testing.assert_allclose(metrics.loss, quiet.loss, rtol=1e-6)
    assert quiet.penalty == 0
    assert quiet.leak > 0.1


def test_dropout_follows_key_and_step_alone(batch):
    case = make_case(dropout=0.25, descends=True)
    loss = lambda state: float(case.compiled(state, case.frozen, batch)[1].loss)
    later = case.state._replace(step=case.state.step + 1)
    other = case.state._replace(key=jax.random.key_data(jax.random.key(10)))
    assert loss(case.state) == loss(case.state)
    assert loss(later) == loss(later)
    assert len({loss(case.state), loss(later), loss(other)}) == 3


def test_without_dropout_step_and_key_do_not_matter(batch, oracle):
    case = make_case(descends=True)
    other = case.state._replace(step=case.state.step + 3, key=case.state.key + np.uint32(1))
    _, (metrics,) = case._replace(state=other).run(batch)
    np.testing.assert_allclose(metrics.loss, oracle.loss, rtol=1e-6)


def test_microbatches_take_every_so_manieth_row_and_a_key_each():
    rows = np.arange(8, dtype=np.int32)[:, None]
    seen = []

    def value_and_grad(part, key):
        jax.debug.callback(
            lambda x, k: seen.append((x.tolist(), k)), part.tokens[:, 0], jax.random.uniform(key)
        )
        total = jnp.sum(part.tokens).astype(jnp.float32)
        return total, {"a": total * 2}

    total, gradient = accumulate(value_and_grad, Batch(*[rows] * 4), jax.random.key(0), 2)
    jax.effects_barrier()
    assert (total, gradient["a"]) == (28, 56)
    assert [x for x, _ in seen] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert seen[0][1] != seen[1][1]


# data x fsdp x tensor, all of 1, 2, 4 and 8 devices.
MESHES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if math.prod(sizes) <= 8]


@functools.cache
def ten_steps_alone(stage, kind):
    """State and losses of ten steps on one device."""
    state, metrics = make_case(stage, kind=kind).run(*[make_batch(sequences())] * 10)
    return state, [float(each.loss) for each in metrics]


@pytest.mark.parametrize(
    ("stage", "kind", "mesh"),
    [(MKA, "none", (2, 2, 2)), (DA, "projection", (1, 8, 1))],
    ids=["mka", "da"],
)
def test_ten_steps_on_eight_devices_are_those_of_one(batch, stage, kind, mesh):
    assert_ten_steps_are_those_of_one(batch, stage, kind, mesh)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "kind"), [(MKA, "none"), (DA, "projection")], ids=["mka", "da"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_ten_steps_on_every_mesh_are_those_of_one(batch, stage, kind, mesh):
    assert_ten_steps_are_those_of_one(batch, stage, kind, mesh)


def assert_ten_steps_are_those_of_one(batch, stage, kind, mesh):
    """Losses, and adapters after the last step, within 1e-5 of those on one device."""
    case = make_case(stage, kind=kind)
    expected, alone = ten_steps_alone(stage, kind)
    mesh = make_mesh(MeshSettings(*mesh), jax.devices()[: math.prod(mesh)])
    step, state, frozen = on_mesh(case, mesh, batch)
    batch = jax.device_put(Batch(*map(jnp.asarray, batch)), batch_sharding(mesh))
    losses = []
    for _ in range(10):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics.loss))
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    assert losses[-1] < 0.8 * losses[0]
    is_whole = jax.tree.leaves(state.learning)[0].sharding.is_fully_replicated
    assert is_whole == (mesh.shape["fsdp"] == 1)
    found, wanted = jax.device_get((state.learning, expected.learning))
    gap = optax.tree.norm(optax.tree.sub(found, wanted)) / optax.tree.norm(wanted)
    assert gap < 1e-5


def on_mesh(case, mesh, batch):
    """The loop's compiled step, and a copy of state and frozen trees, placed on a mesh."""
    trees = jax.tree.map(jnp.copy, (case.state, case.frozen))
    places = tree_shardings(mesh, trees)
    with jax.set_mesh(mesh):
        lowered = jit_step(case.step, *places, mesh).lower(*trees, batch)
    return lowered.compile(), *jax.device_put(trees, places)


def weight_shaped_products(function, *arguments):
    """How many products of a program have the shape of a base kernel, either way round."""
    kernels = {
        tuple(sorted(x.shape[-2:]))
        for p, x in flatten(make_case().frozen[BASE]).items()
        if p.endswith(("_proj/kernel", "lm_head/kernel"))
    }
    values = equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    shapes = [e.outvars[0].aval.shape for e in values if e.primitive.name == "dot_general"]
    return sum(tuple(sorted(shape)) in kernels for shape in shapes)


def equations(jaxpr):
    """All equations of a program, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(getattr(inner, "jaxpr", inner))


def test_no_gradient_of_a_base_weight_is_computed(batch):
    case = make_case()

    def everything(trees):
        losses = dense_losses(case._replace(frozen={}), batch)(trees)
        return jnp.sum(losses, where=is_label(batch))

    trees = {**case.frozen, **case.state.learning}
    assert weight_shaped_products(case.step, case.state, case.frozen, batch) == 0
    assert weight_shaped_products(jax.grad(everything), trees) == 8  # seven projections, the head


def test_the_state_is_donated_and_the_frozen_trees_are_not(batch):
    mesh = make_mesh(MeshSettings(1, 1, 1), jax.devices()[:1])
    step, state, frozen = on_mesh(make_case(DA, kind="projection"), mesh, batch)
    step(state, frozen, jax.device_put(Batch(*map(jnp.asarray, batch)), batch_sharding(mesh)))
    leaves = jax.tree.leaves((state.learning, state.optimizer))
    # Of the scalars the share that the last update lost is written and never read.
    assert all(leaf.is_deleted() for leaf in leaves if leaf.ndim)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
