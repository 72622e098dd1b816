"""Parts of the job that can be had without a run; the whole is in test_end_to_end.py."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import pytest

from configs import tiny
from medcare_jax.checkpoints import CheckpointError
from medcare_jax.files import write_json
from medcare_jax.orthogonality import extend_basis, project_tree
from medcare_jax.params import ALIGNMENT, KNOWLEDGE
from medcare_jax.run.job import ConstraintError, Job, check_penalty, open_run
from medcare_jax.run.outputs import settings_warnings
from medcare_jax.run.progress import Display
from medcare_jax.settings import ConstraintSettings, MeshSettings, make_settings
from medcare_jax.sharding import make_mesh
from medcare_jax.training.stages import protected_basis
from medcare_jax.training.step import penalty_of
from tests.run.workdirs import DA_STEPS, MKA_STEPS, make_workdir, write_base

TINY = make_settings(tiny.get_config())


def lora(key, *, out=0.0):
    lora_a = jax.random.normal(jax.random.key(key), (2, 7, 3))
    return {"up_proj": {"lora_a": lora_a, "lora_b": jnp.full((2, 3, 5), out)}}


def check(knowledge, **constraint):
    """Checks an alignment as DA begins with it: B is zero."""
    settings = ConstraintSettings(kind="penalty", **constraint)
    alignment = lora(1)
    basis = extend_basis(protected_basis(knowledge, settings), alignment)
    check_penalty(settings, {KNOWLEDGE: knowledge, ALIGNMENT: alignment}, {ALIGNMENT: basis})


@pytest.mark.parametrize("side", ["input", "output", "both"])
@pytest.mark.parametrize("basis", ["span", "svd"])
def test_a_penalty_that_pulls_is_let_through(side, basis):
    check(lora(0, out=0.5), side=side, basis=basis)


@pytest.mark.parametrize("basis", ["span", "svd"])
def test_a_penalty_without_gradient_is_an_error(basis):
    with pytest.raises(ConstraintError, match="expected a norm above 0"):
        check(jax.tree.map(jnp.zeros_like, lora(0)), basis=basis)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("norm", ["l1", "frobenius", "cosine"])
@pytest.mark.parametrize("side", ["input", "output", "both"])
@pytest.mark.parametrize("basis", ["span", "svd"])
def test_a_penalty_beside_a_projection_is_warned_of_where_it_moves_nothing(
    side, basis, norm, strength
):
    settings = ConstraintSettings(
        kind="projection+penalty", side=side, basis=basis, penalty_norm=norm, strength=strength
    )
    knowledge, learned = lora(0, out=0.5), lora(1)
    learned["up_proj"]["lora_b"] = jax.random.normal(jax.random.key(2), (2, 3, 5))
    found = {ALIGNMENT: extend_basis(protected_basis(knowledge, settings), learned)}
    # Where the projection leaves the alignment: wholly outside, or only part of the way there.
    alignment = project_tree({ALIGNMENT: learned}, found, strength=strength)

    def penalty(tree):
        return penalty_of(settings, {KNOWLEDGE: knowledge, **tree}, found)

    slope = jax.grad(penalty)(alignment)
    moved = project_tree(slope, found, strength=strength)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moved))
    warned = settings_warnings(dataclasses.replace(TINY, constraint=settings))
    assert bool(warned) == (strength == 1)
    assert (largest < 1e-4) == bool(warned), largest


def test_an_alignment_on_attention_that_nothing_constrains_is_said():
    adapters = dataclasses.replace(TINY.adapters, alignment_on_attention=True)
    for constraint, is_said in [
        (ConstraintSettings(basis="span"), True),
        (ConstraintSettings(basis="activation"), False),
        (ConstraintSettings(kind="none"), False),
    ]:
        settings = dataclasses.replace(TINY, adapters=adapters, constraint=constraint)
        assert ("kept off nothing" in " ".join(settings_warnings(settings))) == is_said
    assert settings_warnings(TINY) == []


def test_routers_that_cannot_learn_are_said():
    for one, is_said in ((1, True), (2, False)):
        adapters = dataclasses.replace(TINY.adapters, experts=4, experts_per_token=one)
        found = settings_warnings(dataclasses.replace(TINY, adapters=adapters))
        assert ("routers never learn" in " ".join(found)) == is_said


@pytest.mark.parametrize(
    ("changes", "is_said"),
    [
        ({}, True),
        ({"basis": "svd", "side": "both", "penalty_norm": "cosine"}, True),
        ({"strength": 0.9}, False),
        ({"freeze_knowledge": False}, False),
        ({"kind": "penalty"}, False),
        ({"kind": "projection"}, False),
    ],
)
def test_a_penalty_all_of_whose_slope_is_projected_away_is_said(changes, is_said):
    constraint = ConstraintSettings(**{"kind": "projection+penalty"} | changes)
    found = settings_warnings(dataclasses.replace(TINY, constraint=constraint))
    assert ("the penalty does nothing" in " ".join(found)) == is_said


def test_an_alignment_without_room_is_refused_or_said(capsys):
    job = Job.__new__(Job)
    job.run = types.SimpleNamespace(display=Display())
    full, half = {"lora_a": jnp.eye(4)}, {"lora_a": jnp.eye(4, 2)}
    with pytest.raises(ConstraintError, match="DA would learn nothing; lower constraint.energy"):
        job._tell_room({"up": full, "down": full})
    job._tell_room({"up": half, "down": half})
    assert not capsys.readouterr().err
    job._tell_room({"up": full, "down": half})
    assert "the whole space of 50% of the alignment's matrices" in capsys.readouterr().err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("made")
    return make_workdir(place / "workdir", write_base(place / "base"))


class Began(Exception):
    """The job was let through and does its first part."""


def begin(made, monkeypatch, **changes):
    """Begins the job of a made workdir with changed sections; what it scores raises."""

    def score(self, *_):
        raise Began

    monkeypatch.setattr(Job, "score", score)
    sections = {
        name: dataclasses.replace(getattr(made.settings, name), **values)
        for name, values in changes.items()
    }
    steps = {"mka": MKA_STEPS[-1], "da": DA_STEPS[-1]}
    batches = {
        name: types.SimpleNamespace(num_batches=count, fingerprint="")
        for name, count in steps.items()
    }
    run = types.SimpleNamespace(
        settings=dataclasses.replace(made.settings, **sections),
        workdir=made.workdir,
        base=made.base,
        data=types.SimpleNamespace(**batches, report={}),
    )
    Job(run).run_all()


@pytest.mark.parametrize(
    "changes",
    [{"constraint": {"kind": "none"}}, {"base": {"dtype": "bfloat16"}}, {"da": {"max_steps": 1}}],
)
def test_what_a_stage_refuses_is_refused_before_anything_is_scored_or_written(
    made, monkeypatch, changes
):
    before = (made.workdir / "config.json").read_bytes()
    ((section, values),) = changes.items()
    name = "stage.steps" if section == "da" else f"{section}.{next(iter(values))}"
    with pytest.raises(CheckpointError, match=f"{name}: .* -> "):
        begin(made, monkeypatch, **changes)
    assert (made.workdir / "config.json").read_bytes() == before


def test_the_record_follows_a_command_that_is_let_through(made, monkeypatch):
    with pytest.raises(Began):
        begin(made, monkeypatch, evaluation={"limit": 7}, data={"accumulation": 2})
    said = json.loads((made.workdir / "config.json").read_text())
    assert (said["evaluation"]["limit"], said["data"]["accumulation"]) == (7, 2)


def test_a_checkpoint_that_was_never_signed_decides_nothing(made, monkeypatch, tmp_path):
    """The first save was killed: the next start may say other settings, and they are written."""
    (tmp_path / "mka/checkpoints/rejected/2").mkdir(parents=True)
    (tmp_path / "mka/checkpoints/2").mkdir()
    write_json(tmp_path / "config.json", {})
    with pytest.raises(Began):
        begin(made._replace(workdir=tmp_path), monkeypatch, adapters={"alpha": 9.0})
    assert json.loads((tmp_path / "config.json").read_text())["adapters"]["alpha"] == 9.0


def test_a_base_of_a_shorter_context_than_the_dialogues_is_said_at_the_start(tmp_path):
    config = tiny.get_config()
    config.base.random.max_position_embeddings = 64
    settings = make_settings(config)
    display, mesh = Display(is_shown=False), make_mesh(MeshSettings(fsdp=1), jax.devices()[:1])
    said: list[str] = []
    display.line = said.append
    with jax.set_mesh(mesh):
        open_run(settings, tmp_path, display, mesh)
    warned = [line for line in said if "more than the base's context of 64" in line]
    assert [line.split()[:2] for line in warned] == [["WARNING:", "mka"], ["WARNING:", "da"]]
