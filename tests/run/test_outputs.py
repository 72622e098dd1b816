"""What a run tells a person, and an export that is used, kept aside or written anew."""

import dataclasses
import json

import pytest

from configs import tiny
from medcare_jax.conversion.report import write_report
from medcare_jax.run.data import RunData
from medcare_jax.run.outputs import _curve, data_summary, is_exported, options_of
from medcare_jax.settings import EvaluationSettings, make_settings

ASKED = {"weights": "w", "dtype": "bfloat16"}


@pytest.fixture
def exported(tmp_path):
    """An export with its report."""
    path = tmp_path / "export"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    write_report(path, ASKED, {})
    return path


def data_of(**overlap):
    """Data whose report is of three files."""

    def stage(steps, *files):
        return {"steps": steps, "files": [{"kept": k, "over_long": o} for k, o in files]}

    report = {"mka": stage(40, (100, 2), (50, 1)), "da": stage(9, (30, 0)), "overlap": overlap}
    return RunData(mka=None, da=None, tasks=[], report=report)


def test_the_summary_adds_up_the_files_of_each_stage():
    said = data_summary(data_of())
    assert said == (
        "150 dialogues in 40 steps of MKA, 30 in 9 steps of DA, 3 over-long; 0 evaluation items"
    )


def test_the_summary_says_whether_evaluation_questions_are_trained_on():
    task = type("Task", (), {"items": (1, 2)})
    clean = dataclasses.replace(data_of(overlaps=()), tasks=[task])
    mixed = dataclasses.replace(data_of(overlaps=("one",)), tasks=[task])
    assert data_summary(clean).endswith("2 evaluation items, none of them in the training data")
    assert data_summary(mixed).endswith("2 evaluation items, some in the training data")


def test_options_are_those_of_the_settings_in_the_order_of_the_table():
    asked = EvaluationSettings(
        protocols=("likelihood", "generate"), rules="strict", batch=3, max_new_tokens=7, limit=5
    )
    settings = dataclasses.replace(make_settings(tiny.get_config()), evaluation=asked)
    options = options_of(settings)
    assert options.protocols == ("generate", "likelihood")
    assert (options.rules, options.batch, options.max_new_tokens) == ("strict", 3, 7)
    assert (options.limit, options.seed, options.dtype) == (
        5,
        settings.seed,
        settings.compute.dtype,
    )


def test_a_whole_export_of_the_same_weights_is_there_already(exported, tmp_path):
    said: list[str] = []
    assert is_exported(exported, ASKED, said.append)
    assert not is_exported(tmp_path / "none", ASKED, said.append)
    assert said == []


def test_a_step_that_was_left_out_is_no_point_of_the_curve_whatever_its_loss(tmp_path):
    (tmp_path / "mka").mkdir()
    same = {"learning_rate": 0.1, "tokens_per_second": 9.0}
    losses, skipped = (3.0, None, 2.0, 8.0, 1.0), (0, 1, 1, 2, 2)
    lines = [
        json.dumps({"step": step, "loss": loss, "skipped": count, **same})
        for step, (loss, count) in enumerate(zip(losses, skipped, strict=True), start=1)
    ]
    (tmp_path / "mka" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    curve = _curve(tmp_path, "mka", is_projected=False)
    assert (curve.step, curve.loss) == ((1, 3, 5), (3.0, 2.0, 1.0))


@pytest.mark.parametrize(
    ("weights", "damage", "reason"),
    [("others", b"weights", "of other weights"), ("w", b"weightz", "! model.safetensors")],
)
def test_another_export_is_moved_aside_and_that_is_said(exported, weights, damage, reason):
    (exported / "model.safetensors").write_bytes(damage)
    said: list[str] = []
    assert not is_exported(exported, ASKED | {"weights": weights}, said.append)
    assert not exported.exists()
    assert (exported.with_name("export.rejected") / "model.safetensors").read_bytes() == damage
    assert len(said) == 1
    assert reason in said[0]
