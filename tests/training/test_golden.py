"""Eight optimiser steps of both stages against the reference's own, number by number."""

import json

import jax
import numpy as np
import pytest

from medcare_jax.conversion.huggingface import load_base
from medcare_jax.conversion.reference import load_reference
from medcare_jax.data.packing import Batch
from medcare_jax.models.decoder import Decoder
from medcare_jax.orthogonality import extend_basis
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, flatten
from medcare_jax.settings import ConstraintSettings, StageSettings
from medcare_jax.training.optimizer import make_optimizer, make_schedule
from medcare_jax.training.stages import MKA
from medcare_jax.training.step import make_state, make_train_step
from tests.helpers import FLOAT32
from tests.training.cases import DA_OPEN

pytestmark = pytest.mark.torch  # what the reference saved is read with torch

STEPS = 8
RATES = StageSettings(learning_rate=0.005, warmup_share=0.25, clip_norm=1.0, weight_decay=0.0)
CASES = {
    "mka": (MKA, "base", None),
    "da": (DA_OPEN, "taia", ConstraintSettings("penalty", "span", freeze_knowledge=False)),
}
# Our component and leaf -> its name in the reference; "i" is an expert's number.
NAMES = {
    ("mlp", KNOWLEDGE, "mka"): "share_experts.lora_{X}.weight",
    ("mlp", "noise", "mka"): "experts.{i}.lora_{X}_{i}.weight",
    ("self_attn", KNOWLEDGE, "mka"): "lora_{X}.weight",
    ("mlp", KNOWLEDGE, "da"): "base.lora_{X}.weight",
    ("mlp", ALIGNMENT, "da"): "orth.lora_{X}.weight",
}
PREFIXES = {"mka": "base_model.model.model.layers", "da": "model.layers"}


def golden_batch(folder):
    """The batch of every golden file."""
    from safetensors.numpy import load_file

    io = load_file(folder / "base" / "io.safetensors")
    mask, positions = io["attention_mask"].astype(np.int32), np.arange(24, dtype=np.int32)
    return Batch(io["input_ids"].astype(np.int32), positions * mask, mask, io["labels"] != -100)


def golden_leaf(tensors, stage, component, path):
    """The reference's final values of one of our leaves, layers stacked, experts side by side."""
    _, _, block, projection, leaf = path.split("/")

    def layer(number):
        module = f"{PREFIXES[stage]}.{number}.{block}.{projection}"
        if leaf.startswith("router"):
            return tensors[f"{module}.switch.{'weight' if 'kernel' in leaf else 'bias'}"].T
        name = f"{module}.{NAMES[block, component, stage]}"
        parts = [
            tensors[name.format(i=i, X=leaf[-1].upper())].T
            for i in range(4 if component == "noise" else 1)
        ]
        return np.concatenate(parts, axis=1 if leaf == "lora_a" else 0)

    return np.stack([layer(number) for number in range(3)])


@pytest.fixture(scope="module", params=CASES)
def trajectory(request, shared):
    """Stage name, the reference's record of it, and what our step makes of the same start."""
    name = request.param
    stage, base, constraint = CASES[name]
    folder = shared / "golden"
    settings, params = load_base(folder / base)
    adapters, trees = load_reference(folder / name, settings)
    optimizer = make_optimizer(RATES, STEPS, constraint=None)
    learning = {component: trees.pop(component) for component in stage.learning}
    assert not trees
    basis = {} if constraint is None else extend_basis({}, learning)
    decoder = Decoder(settings, adapters, stage.components, FLOAT32)
    step = make_train_step(decoder, optimizer, constraint, accumulation=1, loss_chunk=7)
    state, rows = make_state(learning, optimizer, jax.random.key(0), basis), []
    compiled = jax.jit(step)
    for _ in range(STEPS):
        state, metrics = compiled(state, {BASE: params}, golden_batch(folder))
        rows.append(metrics)
    return name, json.loads((folder / name / "trajectory.json").read_text()), rows, state


def test_losses_and_gradient_norms_are_those_of_the_reference(trajectory):
    name, golden, rows, _ = trajectory
    column = lambda field: [float(getattr(row, field)) for row in rows]
    np.testing.assert_allclose(column("loss")[:2], golden["nll"][:2], rtol=0, atol=2e-5)
    np.testing.assert_allclose(column("loss"), golden["nll"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(column("grad_norm"), golden["grad_norm_before_clip"], rtol=1e-3)
    penalty = golden["orthogonal_loss"] or [0.0] * STEPS
    np.testing.assert_allclose(column("penalty"), penalty, rtol=1e-3)
    assert column("targets") == [23.0] * STEPS
    assert (name == "da") == (penalty[0] > 0)


def test_the_final_tensors_are_those_of_the_reference(trajectory, shared):
    from safetensors.numpy import load_file

    name, _, _, state = trajectory
    tensors = load_file(shared / "golden" / name / "trajectory_final.safetensors")
    count = 0
    for component, tree in state.learning.items():
        for path, leaf in flatten(tree).items():
            expected = golden_leaf(tensors, name, component, path)
            np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-3, err_msg=path)
            count += expected.size
    assert count == sum(tensor.size for tensor in tensors.values())


def test_the_first_update_has_rate_zero(trajectory):
    _, golden, rows, _ = trajectory
    rates = [float(make_schedule(RATES, STEPS)(step)) for step in range(STEPS + 1)]
    np.testing.assert_allclose(rates, [0.0, *golden["learning_rate_after_step"]], atol=1e-9)
    assert rows[0].loss == rows[1].loss
