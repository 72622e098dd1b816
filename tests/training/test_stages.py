"""The hand-over: what is dropped, merged, kept and begun, and that the model stays the same."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from medcare_jax.models.aggregators import (
    ATTENTION_PROJECTIONS,
    FFN_PROJECTIONS,
    KNOWLEDGE_COMPONENTS,
)
from medcare_jax.models.decoder import Decoder
from medcare_jax.orthogonality import max_leak
from medcare_jax.params import (
    ALIGNMENT,
    BASE,
    KNOWLEDGE,
    NOISE,
    digest,
    flatten,
    merge,
    nbytes,
    split,
    unflatten,
)
from medcare_jax.settings import ConstraintSettings, MeshSettings
from medcare_jax.sharding import make_mesh, tree_shardings
from medcare_jax.training.stages import (
    MKA,
    alignment_stage,
    begin_alignment,
    init_adapters,
    select,
)
from tests.helpers import FLOAT32, outputs_of, random_inputs, random_params
from tests.training.cases import ADAPTERS, DA, DA_OPEN, SETTINGS, stage_decoder

ON_ATTENTION = alignment_stage(
    dataclasses.replace(ADAPTERS, alignment_on_attention=True), ConstraintSettings()
)


@pytest.fixture(scope="module")
def trees():
    """The end of MKA, every leaf random."""
    return split(random_params(stage_decoder(MKA), seed=5))


def handover(trees, *, stage=DA, seed=1, data_basis=None, basis="span", **constraint):
    """What DA begins with."""
    return begin_alignment(
        trees,
        stage_decoder(stage),
        jax.random.key(seed),
        constraint=ConstraintSettings(basis=basis, **constraint),
        data_basis=data_basis,
    )


@pytest.fixture(scope="module")
def start(trees):
    return handover(trees)


def test_on_a_mesh_the_handover_gives_the_same_and_stays_in_its_places(trees, start):
    mesh = make_mesh(MeshSettings(2, 2, 2))
    used = {name: trees[name] for name in (BASE, KNOWLEDGE)}
    with jax.set_mesh(mesh):
        found = handover(jax.device_put(used, tree_shardings(mesh, used)))
    assert digest(found.knowledge) == digest(start.knowledge)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), found, start)
    kept = {BASE: found.base, KNOWLEDGE: found.knowledge}
    places = jax.tree.leaves(tree_shardings(mesh, kept))
    for leaf, place in zip(jax.tree.leaves(kept), places, strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_stages_say_what_learns():
    assert MKA.learning == (KNOWLEDGE, NOISE)
    assert DA.learning == (ALIGNMENT,)
    assert DA_OPEN.learning == (KNOWLEDGE, ALIGNMENT)
    assert NOISE not in DA.components.ffn + DA.components.attention
    assert KNOWLEDGE not in DA.components.attention
    assert ON_ATTENTION.components.attention == (ALIGNMENT,)


def test_noise_is_not_looked_at(trees, start):
    without = {name: tree for name, tree in trees.items() if name != NOISE}
    for noise in ({}, {NOISE: object()}, {NOISE: jax.tree.map(jnp.zeros_like, trees[NOISE])}):
        other = handover({**without, **noise})
        assert [digest(tree) for tree in other] == [digest(tree) for tree in start]


def attention_merge(base, knowledge):
    """The merged attention kernels in float64, by path."""
    merged = {}
    for path, kernel in flatten(base).items():
        owner, _, leaf = path.rpartition("/")
        if leaf == "kernel" and owner.endswith(ATTENTION_PROJECTIONS):
            factors = (
                np.asarray(knowledge[f"{owner}/{x}"], np.float64) for x in ("lora_a", "lora_b")
            )
            merged[path] = np.asarray(kernel, np.float64) + 8 / 5 * np.matmul(*factors)
    return merged


def test_attention_is_merged_in_float32_and_nothing_else(trees, start):
    merged = attention_merge(trees[BASE], flatten(trees[KNOWLEDGE]))
    assert len(merged) == 4
    for path, kernel in flatten(start.base).items():
        before = flatten(trees[BASE])[path]
        if path in merged:
            np.testing.assert_allclose(kernel, merged[path], rtol=0, atol=1e-6)
            assert np.abs(kernel - before).max() > 0.1
        else:
            np.testing.assert_array_equal(kernel, before)


def test_a_bfloat16_base_is_rounded_once(trees):
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trees[BASE])
    found = flatten(handover({**trees, BASE: narrow}).base)
    for path, exact in attention_merge(narrow, flatten(trees[KNOWLEDGE])).items():
        once = exact.astype(np.float32).astype(ml_dtypes.bfloat16)
        kernel = np.asarray(flatten(narrow)[path])
        delta = (exact - kernel.astype(np.float64)).astype(ml_dtypes.bfloat16)
        twice = kernel + delta
        assert found[path].dtype == jnp.bfloat16
        assert np.mean(np.asarray(found[path]) != once) < 1e-3
        assert np.mean(twice != once) > 0.05


def test_the_model_computes_the_same_before_and_after(trees, start):
    before = {BASE: trees[BASE], KNOWLEDGE: trees[KNOWLEDGE]}
    after = {BASE: start.base, KNOWLEDGE: start.knowledge, ALIGNMENT: start.alignment}
    inputs = random_inputs(3, 9, vocab_size=SETTINGS.vocab_size)
    decoder = Decoder(SETTINGS, ADAPTERS, KNOWLEDGE_COMPONENTS, FLOAT32)
    expected = outputs_of(decoder, merge(before), inputs)
    found = outputs_of(stage_decoder(DA), merge(after), inputs)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-5)
    without = outputs_of(decoder, merge({**before, BASE: start.base}), inputs)
    assert np.abs(without.logits - expected.logits).max() > 0.1, "merged and live: twice"


def test_the_ffn_knowledge_is_kept_to_the_bit(trees, start):
    assert digest(start.knowledge) == digest(select(trees[KNOWLEDGE], FFN_PROJECTIONS))
    assert not any("self_attn" in path for path in flatten(start.knowledge))
    assert len(flatten(start.knowledge)) == 6


def test_the_alignment_begins_in_the_complement_with_b_zero(start):
    assert max_leak(start.alignment, start.basis) < 1e-6
    for path, leaf in flatten(start.alignment).items():
        assert leaf.dtype == jnp.float32
        assert (np.abs(leaf).max() > 0.05) == path.endswith("lora_a")
        assert path.endswith("lora_a") or not leaf.any()


def test_without_projection_the_alignment_begins_anywhere(trees):
    free = handover(trees, kind="none")
    assert digest(free.alignment) == digest(
        init_adapters(stage_decoder(DA), jax.random.key(1))[ALIGNMENT]
    )
    assert max_leak(free.alignment, free.basis) > 0.1
    assert digest(free.basis) == digest(handover(trees).basis)


def test_the_basis_has_the_true_rank(trees):
    flat = flatten(trees[KNOWLEDGE])
    path = "model/layers/mlp/up_proj/lora_a"
    lora_a = np.array(flat[path])  # [l, d, R] = [3, 24, 10]
    lora_a[:, :, 7:] = lora_a[:, :, :3] * 2  # rank 7 everywhere,
    lora_a[1, :, 4:] = 0  # and 4 in one layer
    start = handover({**trees, KNOWLEDGE: unflatten({**flat, path: jnp.asarray(lora_a)})})
    basis = np.asarray(flatten(start.basis)[path])
    assert basis.shape == (3, 24, 7)
    assert [int(np.linalg.norm(layer, axis=0).round().sum()) for layer in basis] == [7, 4, 7]
    assert flatten(start.basis)["model/layers/mlp/gate_proj/lora_a"].shape == (3, 24, 10)
    inside = np.swapaxes(lora_a, 1, 2) @ np.asarray(flatten(start.alignment)[path])
    assert np.abs(inside).max() < 1e-6
    assert np.linalg.matrix_rank(flatten(start.alignment)[path], tol=1e-4).tolist() == [10] * 3


def test_alignment_on_attention_is_unconstrained_there(trees):
    start = handover(trees, stage=ON_ATTENTION)
    init = flatten(init_adapters(stage_decoder(ON_ATTENTION), jax.random.key(1))[ALIGNMENT])
    alignment, basis = flatten(start.alignment), flatten(start.basis)
    attention = [path for path in alignment if "self_attn" in path]
    assert len(attention) == 8
    assert len(alignment) == 14
    for path in attention:
        assert basis[path].shape[-1] == 0
        np.testing.assert_array_equal(alignment[path], init[path])
    assert alignment["model/layers/self_attn/q_proj/lora_a"].shape == (3, 24, 10)
    assert max_leak(start.alignment, start.basis) < 1e-6


def test_the_svd_basis_is_smaller_and_inside_the_span(trees, start):
    path = "model/layers/mlp/up_proj/lora_a"
    whole = flatten(start.basis)[path]
    small = flatten(handover(trees, basis="svd", energy=0.5).basis)[path]
    assert 0 < small.shape[-1] < whole.shape[-1]
    inside = whole @ (jnp.swapaxes(whole, -1, -2) @ small)
    np.testing.assert_allclose(inside, small, rtol=0, atol=1e-5)


def test_the_output_side_is_protected_where_it_is_asked_for(trees):
    widths = {
        side: {path.rpartition("/")[2]: leaf.shape[-1] for path, leaf in flatten(found).items()}
        for side in ("input", "output", "both")
        for found in [handover(trees, side=side).basis]
    }
    assert widths == {
        "input": {"lora_a": 10, "lora_b": 0},
        "output": {"lora_a": 0, "lora_b": 10},
        "both": {"lora_a": 10, "lora_b": 10},
    }


def test_an_activation_basis_is_that_of_data(trees):
    path = "model/layers/mlp/up_proj/lora_a"
    leading = np.stack([np.eye(24, 2, dtype=np.float32)] * 3)
    data_basis = unflatten({path: leading})
    start = handover(trees, basis="activation", data_basis=data_basis)
    basis = flatten(start.basis)
    np.testing.assert_array_equal(basis[path], leading)
    assert {leaf.shape[-1] for other, leaf in basis.items() if other != path} == {0}
    assert np.abs(flatten(start.alignment)[path][:, :2]).max() < 1e-6
    with pytest.raises(ValueError, match="expected a basis of data"):
        handover(trees, basis="activation")


def test_a_soft_projection_begins_part_of_the_way(trees, start):
    path = "model/layers/mlp/up_proj/lora_a"
    free = flatten(handover(trees, kind="none").alignment)[path]
    soft = flatten(handover(trees, strength=0.25).alignment)[path]
    hard = flatten(start.alignment)[path]
    np.testing.assert_allclose(soft, 0.75 * free + 0.25 * hard, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", [MKA, DA], ids=lambda stage: stage.name)
def test_adapters_begin_uniform_with_b_zero(stage):
    decoder = stage_decoder(stage)
    adapters, again, other = (init_adapters(decoder, jax.random.key(seed)) for seed in (3, 3, 4))
    assert set(adapters) == {*stage.learning, KNOWLEDGE}
    assert [digest(x) for x in adapters.values()] == [digest(x) for x in again.values()]
    assert digest(adapters[KNOWLEDGE]) != digest(other[KNOWLEDGE])
    widths = {"down_proj": 40, "o_proj": 32}
    for tree in adapters.values():
        for path, leaf in flatten(tree).items():
            _, owner, name = path.rsplit("/", 2)
            bound = widths.get(owner, 24) ** -0.5
            assert leaf.dtype == jnp.float32
            if name == "lora_b":
                assert not leaf.any()
                continue
            assert np.abs(leaf).max() <= bound
            assert np.abs(leaf).max() > (0.75 if name == "router_bias" else 0.98) * bound
            assert np.unique(leaf).size > 0.9 * leaf.size, "layers must not begin alike"


def test_making_adapters_makes_no_base_weight():
    wide = dataclasses.replace(
        SETTINGS, vocab_size=3000, hidden_size=384, intermediate_size=960, head_dim=96
    )
    decoder = Decoder(wide, ADAPTERS, MKA.components, FLOAT32)
    ones = jnp.ones((1, 1), jnp.int32)
    key = jax.random.key(0)
    shapes = split(jax.eval_shape(decoder.init, key, ones, ones, ones)["params"])
    base, adapters = (sum(map(nbytes, map(shapes.get, names))) for names in ([BASE], MKA.learning))
    memory = init_adapters.lower(decoder, key).compile().memory_analysis()
    assert memory.output_size_in_bytes < 1.1 * adapters
    assert memory.temp_size_in_bytes < adapters
    assert adapters < 0.1 * base
