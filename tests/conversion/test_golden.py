"""The authors' checkpoints, read and run here, against the numbers that their own code gave.

Everything goes through the public API that docs/formats.md describes.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from medcare_jax.conversion import fold, load_base, load_reference, save_reference
from medcare_jax.data.packing import Batch
from medcare_jax.models.aggregators import (
    DA_COMPONENTS,
    MKA_COMPONENTS,
    NO_ADAPTERS,
    Components,
)
from medcare_jax.models.decoder import Decoder, output_matrix
from medcare_jax.models.families import DecoderSettings
from medcare_jax.orthogonality import overlap_penalty
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, NOISE, Tree, flatten, merge
from medcare_jax.settings import AdapterSettings, ComputeSettings
from medcare_jax.training.loss import next_tokens, summed_nll

# The tolerances of the golden set's README.
STATES, LOSS, GRADIENTS, PENALTY = 1e-4, 2e-5, 1e-5, 1e-5

FLOAT32 = ComputeSettings(dtype="float32", adapter_dtype="float32", remat="none")


class Case(NamedTuple):
    """A decoder and the batch of the golden set."""

    decoder: Decoder
    batch: Batch

    def loss(self, params: Tree) -> jax.Array:
        return mean_nll(self.batch, params, self.decoder.apply({"params": params}, *self.batch[:3]))


def mean_nll(batch: Batch, params: Tree, hidden: jax.Array) -> jax.Array:
    targets = next_tokens(batch.tokens, batch.segments, batch.is_target)
    total = summed_nll(hidden, output_matrix(params), targets, chunk=7)
    return total / jnp.sum(targets.weights)


class Outputs(NamedTuple):
    """What a decoder gives for a batch."""

    hidden: np.ndarray
    logits: np.ndarray
    loss: np.ndarray
    sown: Tree


@functools.partial(jax.jit, static_argnums=0)
def _outputs(decoder: Decoder, batch: Batch, params: Tree) -> Outputs:
    hidden, state = decoder.apply({"params": params}, *batch[:3], mutable=["intermediates"])
    logits = decoder.apply({"params": params}, hidden, method="unembed")
    loss = mean_nll(batch, params, hidden)
    return Outputs(hidden, logits, loss, state["intermediates"]["model"])


def make_case(
    expected: Mapping[str, np.ndarray],
    settings: DecoderSettings,
    components: Components = NO_ADAPTERS,
    adapters: AdapterSettings | None = None,
) -> Case:
    mask = expected["attention_mask"]
    return Case(
        Decoder(settings, adapters or AdapterSettings(), components, FLOAT32),
        Batch(
            tokens=jnp.asarray(expected["input_ids"], jnp.int32),
            positions=jnp.asarray(np.broadcast_to(np.arange(mask.shape[1]), mask.shape), jnp.int32),
            segments=jnp.asarray(mask, jnp.int32),
            is_target=jnp.asarray(expected["labels"] != -100),
        ),
    )


def check_outputs(case: Case, params: Tree, expected: Mapping[str, np.ndarray]) -> Tree:
    """Compares hidden states, logits and loss where there is no padding; gives intermediates."""

    final, logits, loss, sown = jax.device_get(_outputs(*case, params))
    states = [sown["embedded"][0], *sown["layers"]["hidden"][0][:-1], final]
    real = expected["attention_mask"] == 1
    for number, state in enumerate(states):
        np.testing.assert_allclose(
            state[real], expected[f"hidden.{number}"][real], rtol=0, atol=STATES
        )
    np.testing.assert_allclose(logits[real], expected["logits"][real], rtol=0, atol=STATES)
    np.testing.assert_allclose(loss, expected["loss"], rtol=0, atol=LOSS)
    return sown


def reference_names(
    folder: pathlib.Path, settings: DecoderSettings, adapters: AdapterSettings, trees: Any
) -> dict[str, np.ndarray]:
    """Trees under the authors' names and layout, by way of the files that they would write."""
    torch = pytest.importorskip("torch")
    save_reference(folder, settings, adapters, trees, layout="mid-run")
    named = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    named = {name: tensor.numpy() for name, tensor in named.items()}
    if (folder / "adapter_model.safetensors").exists():
        named |= safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    return named


def check_gradients(
    named: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], prefix: str
) -> None:
    names = {name.removeprefix(prefix) for name in expected if name.startswith(prefix)}
    assert names == named.keys()
    for name in names:
        np.testing.assert_allclose(
            named[name], expected[prefix + name], rtol=0, atol=GRADIENTS, err_msg=name
        )


def read(folder: pathlib.Path, file: str = "io.safetensors") -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / file)


@pytest.fixture(scope="module")
def golden(shared: pathlib.Path) -> pathlib.Path:
    return shared / "golden"


@pytest.fixture(scope="module")
def mka(golden: pathlib.Path) -> tuple[DecoderSettings, AdapterSettings, Tree]:
    pytest.importorskip("torch")
    settings, base = load_base(golden / "base")
    adapters, trees = load_reference(golden / "mka", settings)
    return settings, adapters, {BASE: base, **trees}


@pytest.fixture(scope="module")
def da(golden: pathlib.Path) -> tuple[DecoderSettings, AdapterSettings, Tree]:
    pytest.importorskip("torch")
    settings, base = load_base(golden / "taia")
    adapters, trees = load_reference(golden / "da", settings)
    return settings, adapters, {BASE: base, **trees}


@pytest.mark.parametrize("name", ["base", "taia", "da_merged"])
def test_base_folder(golden: pathlib.Path, name: str) -> None:
    settings, params = load_base(golden / name)
    expected = read(golden / name)
    check_outputs(make_case(expected, settings), params, expected)


@pytest.mark.torch
def test_stage_one(golden: pathlib.Path, tmp_path: pathlib.Path, mka: Any) -> None:
    settings, adapters, trees = mka
    expected = read(golden / "mka")
    case = make_case(expected, settings, MKA_COMPONENTS, adapters)
    sown = check_outputs(case, merge(trees), expected)
    real = expected["attention_mask"].reshape(-1) == 1
    for layer in range(settings.num_layers):
        for name in ("gate_proj", "up_proj", "down_proj"):
            found = sown["layers"]["mlp"][name]["noise"]["router_logits"][0][layer]
            logits = expected[f"router_logits.layers.{layer}.mlp.{name}"]
            np.testing.assert_allclose(
                found.reshape(logits.shape)[real], logits[real], rtol=0, atol=STATES
            )
    learning = {name: trees[name] for name in (KNOWLEDGE, NOISE)}
    grads = jax.jit(jax.grad(lambda tree: case.loss(merge({BASE: trees[BASE], **tree}))))(learning)
    named = reference_names(tmp_path / "gradients", settings, adapters, grads)
    assert len(named) == 132
    check_gradients(named, expected, "grad.")


@pytest.mark.torch
@pytest.mark.parametrize("name", ["da", "da_final"])
def test_stage_two(golden: pathlib.Path, name: str, da: Any) -> None:
    settings, _, trees = da
    adapters, components = load_reference(golden / name, settings)
    expected = read(golden / name)
    case = make_case(expected, settings, DA_COMPONENTS, adapters)
    check_outputs(case, merge({BASE: trees[BASE], **components}), expected)


@pytest.mark.torch
@pytest.mark.slow
def test_stage_two_gradients(golden: pathlib.Path, tmp_path: pathlib.Path, da: Any) -> None:
    settings, adapters, trees = da
    expected = read(golden / "da")
    case = make_case(expected, settings, DA_COMPONENTS, adapters)
    penalty = overlap_penalty(trees[KNOWLEDGE], trees[ALIGNMENT])
    np.testing.assert_allclose(penalty, expected["orthogonal_loss"], rtol=PENALTY)

    def total(tree: Tree, weight: float) -> jax.Array:
        nll = case.loss(merge({BASE: trees[BASE], **tree}))
        return nll + weight * overlap_penalty(tree[KNOWLEDGE], tree[ALIGNMENT])

    learning = {name: trees[name] for name in (KNOWLEDGE, ALIGNMENT)}
    gradient = jax.jit(jax.grad(total))
    for prefix, weight in (("grad_nll.", 0.0), ("grad_total.", 1.0)):
        grads = gradient(learning, weight)
        named = reference_names(tmp_path / prefix, settings, adapters, grads)
        assert len(named) == 36
        check_gradients(named, expected, prefix)


@pytest.mark.torch
def test_stage_two_begins_as_stage_one_ended(golden: pathlib.Path, mka: Any, da: Any) -> None:
    """With B of the alignment at zero, stage 2 is stage 1 without noise; knowledge is the same."""
    settings, adapters, trees = da
    expected = read(golden / "da", "init_io.safetensors")
    alignment = jax.tree.map_with_path(
        lambda path, leaf: leaf * 0 if path[-1].key == "lora_b" else leaf, trees[ALIGNMENT]
    )
    case = make_case(expected, settings, DA_COMPONENTS, adapters)
    check_outputs(case, merge({**trees, ALIGNMENT: alignment}), expected)
    stage_one = flatten(mka[2][KNOWLEDGE])
    for path, leaf in flatten(trees[KNOWLEDGE]).items():
        np.testing.assert_array_equal(leaf, stage_one[path], err_msg=path)


@pytest.mark.torch
def test_folds_give_the_merged_models(golden: pathlib.Path, mka: Any, da: Any) -> None:
    attention = {"model": {"layers": {"self_attn": None}}}
    attention["model"]["layers"]["self_attn"] = mka[2][KNOWLEDGE]["model"]["layers"]["self_attn"]
    merged = fold(merge({BASE: mka[2][BASE], KNOWLEDGE: attention}), mka[1])
    check_same(merged, load_base(golden / "taia")[1])
    merged = fold(merge(da[2]), da[1])
    check_same(merged, load_base(golden / "da_merged")[1])


def check_same(found: Tree, expected: Tree) -> None:
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=0, atol=2e-6, err_msg=path)


@pytest.mark.torch
def test_knowledge_alone_has_the_scale_of_training(golden: pathlib.Path, mka: Any) -> None:
    """Attention and shared expert, folded: alpha / r, not the alpha / 2r of the authors' loader."""
    settings, adapters, trees = mka
    params = fold(merge({BASE: trees[BASE], KNOWLEDGE: trees[KNOWLEDGE]}), adapters)
    expected = read(golden / "mka")
    variants = read(golden / "taia", "variants.safetensors")
    case = make_case(expected, settings)
    logits = np.asarray(_outputs(*case, params).logits)
    real = expected["attention_mask"] == 1
    right, wrong = variants["share_training_scale"][real], variants["share"][real]
    np.testing.assert_allclose(logits[real], right, rtol=0, atol=STATES)
    assert np.abs(logits[real] - wrong).max() > 100 * STATES
