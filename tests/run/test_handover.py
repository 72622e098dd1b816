"""The hand-over of a run: a pass over MKA's data exactly where the basis needs one."""

import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import pytest

from medcare_jax import distributed
from medcare_jax.checkpoints import Checkpoints
from medcare_jax.models.decoder import Decoder
from medcare_jax.orthogonality import max_leak
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, NOISE, digest, flatten, split
from medcare_jax.run.handover import check_host, hand_over
from medcare_jax.run.progress import Display
from medcare_jax.settings import ConstraintSettings, MeshSettings
from medcare_jax.sharding import make_mesh
from medcare_jax.training import activations
from tests.helpers import FLOAT32, random_params
from tests.training.cases import (
    ADAPTERS,
    DA,
    LENGTH,
    MKA,
    ROWS,
    SETTINGS,
    make_batch,
    sequences,
    stage_decoder,
)


class Batches:
    """MKA's stream, which counts what is taken from it."""

    report = types.SimpleNamespace(rows=ROWS, row_length=LENGTH)

    def __init__(self, num_batches):
        self.taken, self.num_batches = 0, num_batches

    def iterate(self, start, *, rows):
        assert (start, rows) == (0, list(range(ROWS)))
        for seed in range(self.num_batches):
            self.taken += 1
            yield make_batch(sequences(seed))


@pytest.fixture(scope="module")
def trees():
    parts = split(random_params(stage_decoder(MKA), seed=5))
    return {name: parts[name] for name in (BASE, KNOWLEDGE)}


def handed_over(
    trees, workdir=pathlib.Path("none"), num_batches=50, dtype="float32", stage=DA, **constraint
):
    """What DA begins with, and how many batches were looked at."""
    mesh, batches = make_mesh(MeshSettings(1, 1, 1), jax.devices()[:1]), Batches(num_batches)
    run = types.SimpleNamespace(
        settings=types.SimpleNamespace(
            adapters=ADAPTERS,
            base=types.SimpleNamespace(dtype=dtype),
            constraint=ConstraintSettings(**constraint),
            data=types.SimpleNamespace(accumulation=2),
        ),
        decoder=lambda components: Decoder(SETTINGS, ADAPTERS, components, FLOAT32),
        data=types.SimpleNamespace(mka=batches),
        mesh=mesh,
        workdir=workdir,
        display=Display(),
    )
    with jax.set_mesh(mesh):
        return hand_over(run, stage, trees, jax.random.key(1)), batches.taken


def test_a_basis_of_the_knowledge_needs_no_data(trees):
    for basis in ("span", "svd"):
        _, taken = handed_over(trees, basis=basis)
        assert taken == 0


def test_an_activation_basis_looks_at_as_many_batches_as_asked_for(trees):
    start, taken = handed_over(trees, basis="activation", energy=0.8, activation_batches=3)
    assert 3 <= taken <= 5  # some are on their way to the device
    assert float(max_leak(start.alignment, start.basis)) < 1e-6
    widths = {path.rpartition("/")[2]: q.shape[-1] for path, q in flatten(start.basis).items()}
    assert widths["lora_a"] > 0
    assert widths["lora_b"] == 0
    again, _ = handed_over(trees, basis="activation", energy=0.8, activation_batches=3)
    assert digest(again.basis) == digest(start.basis)
    other, _ = handed_over(trees, basis="activation", energy=0.8, activation_batches=4)
    assert digest(other.basis) != digest(start.basis)


def test_the_pass_is_shown_and_ends_with_the_data(trees, capsys):
    asked = {"basis": "activation", "energy": 0.8, "activation_batches": 3}
    for num_batches, seen in ((50, "batches of MKA 3/3"), (2, "batches of MKA 2/2")):
        handed_over(trees, num_batches=num_batches, **asked)
        assert seen in capsys.readouterr().err


def test_noise_that_is_kept_is_looked_through_too(trees):
    parts = split(random_params(stage_decoder(MKA), seed=5))
    noisy = {name: parts[name] for name in (BASE, KNOWLEDGE, NOISE)}
    ffn = (KNOWLEDGE, NOISE, ALIGNMENT)
    kept = dataclasses.replace(DA, components=dataclasses.replace(DA.components, ffn=ffn))
    asked = {"basis": "activation", "energy": 0.8, "activation_batches": 3}
    with_noise, without = (
        handed_over(noisy, stage=stage, **asked)[0].basis for stage in (kept, DA)
    )
    assert digest(with_noise) != digest(without)
    assert digest(without) == digest(handed_over(trees, **asked)[0].basis)


def test_what_the_bases_dtype_cannot_hold_of_the_attention_is_said(trees, capsys):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), trees[BASE])
    small = jax.tree.map(lambda leaf: leaf * 1e-2, trees[KNOWLEDGE])
    for knowledge, is_much in ((trees[KNOWLEDGE], False), (small, True)):
        handed_over({BASE: half, KNOWLEDGE: knowledge}, dtype="bfloat16", basis="span")
        said = capsys.readouterr().err
        assert "attention merged into the bfloat16 base" in said
        assert ("WARNING" in said) == is_much, said
    handed_over(trees, basis="span")
    assert "merged" not in capsys.readouterr().err


def test_wide_layers_are_looked_at_twice(trees, monkeypatch):
    monkeypatch.setattr(activations, "WHOLE_UP_TO", 0)
    monkeypatch.setattr(activations, "SKETCH_WIDTH", 12)
    start, taken = handed_over(trees, basis="activation", energy=0.3, activation_batches=3)
    assert 6 <= taken <= 10
    assert float(max_leak(start.alignment, start.basis)) < 1e-6
    widths = {q.shape[-1] for path, q in flatten(start.basis).items() if path.endswith("lora_a")}
    assert widths <= set(range(1, 13))


def test_the_basis_of_a_checkpoint_is_not_looked_for_again(trees, tmp_path):
    asked = {"basis": "activation", "energy": 0.8, "activation_batches": 3}
    start, _ = handed_over(trees, **asked)
    state = {"learning": {ALIGNMENT: start.alignment}, "basis": {ALIGNMENT: start.basis}}
    with Checkpoints(tmp_path / "da" / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(3, jax.tree.map(jnp.asarray, state), {"seed": 0})
    again, taken = handed_over(trees, tmp_path, **asked)
    assert taken == 0
    assert digest(again.basis) == digest(start.basis)
    assert digest(again.alignment) == digest(start.alignment)


def test_a_checkpoint_without_a_basis_is_one_to_look_for(trees, tmp_path):
    """DA without a constraint saved it, and is gone on from with one: resume has to say that."""
    state = {"learning": {ALIGNMENT: jnp.ones(3)}, "basis": {ALIGNMENT: jnp.zeros((3, 0))}}
    with Checkpoints(tmp_path / "da" / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(3, state, {"seed": 0})
    _, taken = handed_over(trees, tmp_path, basis="activation", activation_batches=3)
    assert taken >= 3


def test_a_host_without_jax_cpu_backend_is_told_before_training(monkeypatch):
    def none(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    check_host(ConstraintSettings(basis="activation"))
    monkeypatch.setattr(jax, "local_devices", none)
    check_host(ConstraintSettings(basis="span"))
    with pytest.raises(ValueError, match=r"add cpu to it, such as JAX_PLATFORMS=tpu,cpu"):
        check_host(ConstraintSettings(basis="activation"))


def test_who_is_told_to_end_does_not_read_on(trees, monkeypatch):
    monkeypatch.setattr(distributed, "must_stop", lambda: True)
    with pytest.raises(distributed.StoppedEarly, match="all of MKA is kept"):
        handed_over(trees, basis="activation")
