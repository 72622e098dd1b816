"""Sums and sketches of activations against ones by hand: padding, streaming, sides, meshes."""

import dataclasses

import jax
import numpy as np
import pytest

from medcare_jax.models.aggregators import KNOWLEDGE_COMPONENTS
from medcare_jax.models.decoder import Decoder
from medcare_jax.orthogonality import refine_sketch, sketch_basis
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, flatten, split
from medcare_jax.settings import ConstraintSettings, MeshSettings
from medcare_jax.sharding import batch_sharding, make_mesh, tree_shardings
from medcare_jax.training import activations
from medcare_jax.training.activations import (
    activation_basis,
    activation_covariance,
    activation_sketch,
    empty_sketch,
    refined_sketch,
)
from medcare_jax.training.stages import MKA, alignment_stage
from tests.helpers import FLOAT32, abstract_params, random_params
from tests.training.cases import ADAPTERS, SETTINGS, make_batch, sequences, stage_decoder

STAGE = alignment_stage(
    dataclasses.replace(ADAPTERS, alignment_on_attention=True), ConstraintSettings()
)
DECODER = Decoder(SETTINGS, ADAPTERS, KNOWLEDGE_COMPONENTS, FLOAT32)
LAYER = "model/layers"
SHAPES = {(16, 16), (24, 24), (32, 8), (40, 8)}  # of probes, if 8 are drawn above 24 dimensions


@pytest.fixture(scope="module")
def trees():
    parts = split(random_params(stage_decoder(MKA), seed=5))
    return {name: parts[name] for name in (BASE, KNOWLEDGE)}


def collected(collect, trees, batches, like, mesh, **options):
    """What is collected from batches on a mesh of that shape."""
    mesh = make_mesh(MeshSettings(*mesh), jax.devices()[: int(np.prod(mesh))])
    with jax.set_mesh(mesh):
        placed = jax.device_put(trees, tree_shardings(mesh, trees))
        on_mesh = [jax.device_put(batch, batch_sharding(mesh)) for batch in batches]
        return collect(DECODER, placed, on_mesh, like, mesh, **options)


def alignment():
    """The shapes of the LoRA that will be constrained."""
    return split(abstract_params(stage_decoder(STAGE)))[ALIGNMENT]


def total_of(trees, batches, *, side="both", mesh=(1, 1, 1)):
    """The sums by path, as float64."""
    found = collected(activation_covariance, trees, batches, alignment(), mesh, side=side)
    return {path: np.asarray(leaf, np.float64) for path, leaf in flatten(found).items()}


@pytest.fixture(scope="module")
def batches():
    return [make_batch(sequences(seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def total(trees, batches):
    return total_of(trees, batches)


def test_what_the_first_layer_reads_is_the_normed_embedding_of_tokens_that_are_not_padding(
    trees, batches, total
):
    base = flatten(trees[BASE])
    table = np.asarray(base["model/embed_tokens/embedding"], np.float64)
    x = np.concatenate([table[b.tokens[b.segments > 0]] for b in batches])
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + SETTINGS.rms_norm_eps)
    x = x * np.asarray(base[f"{LAYER}/input_layernorm/scale"], np.float64)[0]
    found = total[f"{LAYER}/self_attn/q_proj/lora_a"]
    assert found.shape == (3, 24, 24)
    np.testing.assert_allclose(found[0], x.T @ x, rtol=1e-4, atol=1e-3)
    assert not np.allclose(found[1], found[0], rtol=0.1), "layers differ"


def test_what_it_gives_is_kernel_bias_and_knowledge_of_what_it_reads(trees, total):
    """The output's sum from the input's: exact where there is no bias."""
    base, knowledge = flatten(trees[BASE]), flatten(trees[KNOWLEDGE])
    owner = f"{LAYER}/mlp/down_proj"
    weight = np.asarray(base[f"{owner}/kernel"], np.float64) + ADAPTERS.scale * np.matmul(
        *(np.asarray(knowledge[f"{owner}/{name}"], np.float64) for name in ("lora_a", "lora_b"))
    )
    expected = np.swapaxes(weight, 1, 2) @ total[f"{owner}/lora_a"] @ weight
    np.testing.assert_allclose(total[f"{owner}/lora_b"], expected, rtol=1e-3, atol=0.5)


def test_sums_stream_and_only_the_sides_asked_for_are_there(trees, batches, total):
    parts = [total_of(trees, [batch], side="input") for batch in batches]
    assert parts[0].keys() == {path for path in total if path.endswith("lora_a")}
    for path in parts[0]:
        np.testing.assert_allclose(
            parts[0][path] + parts[1][path], total[path], rtol=1e-4, atol=1e-3
        )


def test_on_a_mesh_the_sums_are_the_same(trees, batches, total):
    found = total_of(trees, batches, mesh=(2, 4, 1))
    for path, expected in total.items():
        np.testing.assert_allclose(found[path], expected, rtol=1e-3, atol=1e-2 * expected.max())


def test_microbatches_add_up_to_the_batch(trees, batches, total, monkeypatch):
    """Of 8 rows on 2 devices, 4 at a time: what fits beside the model in training."""
    options = {"side": "both", "accumulation": 2}
    found = collected(activation_covariance, trees, batches, alignment(), (1, 2, 1), **options)
    for path, expected in total.items():
        np.testing.assert_allclose(flatten(found)[path], expected, rtol=1e-3, atol=1e-2)
    monkeypatch.setattr(activations, "WHOLE_UP_TO", 24)
    monkeypatch.setattr(activations, "SKETCH_WIDTH", 8)
    empty = lambda: empty_sketch(alignment(), jax.random.key(0), side="both")
    whole = collected(activation_sketch, trees, batches, empty(), (1, 2, 1))
    parts = collected(activation_sketch, trees, batches, empty(), (1, 2, 1), accumulation=2)
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-3 * np.abs(one).max())


def test_the_same_batches_give_the_same_bits(trees, batches, total):
    again = total_of(trees, batches)
    assert all((again[path] == total[path]).all() for path in total)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 4, 1)])
def test_a_sketch_is_the_covariance_times_its_probes(trees, batches, total, mesh, monkeypatch):
    """Whole where a projection reads or gives up to 24 dimensions, of 8 probes elsewhere."""
    monkeypatch.setattr(activations, "WHOLE_UP_TO", 24)
    monkeypatch.setattr(activations, "SKETCH_WIDTH", 8)
    empty = empty_sketch(alignment(), jax.random.key(0), side="both")
    first = collected(activation_sketch, trees, batches, empty, mesh)
    assert {leaf.shape for leaf in flatten(first.probes).values()} == SHAPES
    second = collected(activation_sketch, trees, batches, refine_sketch(first), mesh)
    assert second.products.keys() == first.products.keys()
    for sketch in (first, second):
        for path, covariance in total.items():
            probes = np.asarray(flatten(sketch.probes)[path], np.float64)
            expected = covariance @ probes
            bound = 1e-3 * np.abs(expected).max()
            found = flatten(sketch.products)[path]
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=bound)
            traces = np.trace(covariance, axis1=1, axis2=2)
            np.testing.assert_allclose(flatten(sketch.traces)[path], traces, rtol=1e-3)


def test_the_basis_of_a_sketch_on_a_mesh_is_found_on_the_host(trees, batches, monkeypatch):
    monkeypatch.setattr(activations, "WHOLE_UP_TO", 24)
    monkeypatch.setattr(activations, "SKETCH_WIDTH", 8)
    shape = (2, 4, 1)
    empty = empty_sketch(alignment(), jax.random.key(0), side="both")
    sketch = collected(activation_sketch, trees, batches, empty, shape)
    mesh = make_mesh(MeshSettings(*shape))
    assert max(len(leaf.devices()) for leaf in jax.tree.leaves(sketch)) == 8
    expected = flatten(sketch_basis(sketch, energy=0.2))
    with jax.set_mesh(mesh):  # as in a run
        found = flatten(activation_basis(sketch, mesh, energy=0.2))
        again = refined_sketch(sketch, mesh)
    assert found.keys() == expected.keys()
    for path, basis in found.items():
        assert isinstance(basis, np.ndarray)
        assert basis.shape == expected[path].shape
        wanted = np.asarray(expected[path])
        np.testing.assert_allclose(
            basis @ basis.swapaxes(-1, -2), wanted @ wanted.swapaxes(-1, -2), atol=1e-4
        )
    assert {type(leaf) for leaf in jax.tree.leaves(again)} == {np.ndarray}
    for path, probes in flatten(refine_sketch(sketch).probes).items():
        np.testing.assert_allclose(flatten(again.probes)[path], probes, atol=1e-4)
