"""What the command leaves and says, and results of another model that it keeps."""

import json
import pathlib

import pytest

from medcare_jax.evaluation.evaluator import Options, unanswered
from medcare_jax.evaluation.judging.endpoint import Endpoint
from medcare_jax.evaluation.results import read_results, read_samples, write_results
from medcare_jax.evaluation.tasks import load_tasks
from medcare_jax.run import evaluation
from medcare_jax.run import prompts as prompts_module
from medcare_jax.run.evaluation import (
    Evaluation,
    run_evaluation,
    run_predictions,
    run_prompts,
)
from medcare_jax.run.facts import versions
from medcare_jax.run.marking import Marking
from medcare_jax.run.progress import Display
from medcare_jax.run.prompts import Generation, PromptsError
from medcare_jax.run.subjects import Asked
from medcare_jax.run.workdir import WorkdirError, hold
from tests.evaluation.records import record, write
from tests.evaluation.report.evaluations import results_of, task_result
from tests.run.workdirs import write_base


@pytest.fixture
def data(tmp_path) -> pathlib.Path:
    """Two questions whose answer is B."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, "medqa", *(record("Which?\nA. one\nB. two", "B", n) for n in range(2)))
    return folder


@pytest.fixture
def answers(tmp_path) -> pathlib.Path:
    """One right answer, one wrong one."""
    texts = ("The answer is B", "The answer is A")
    lines = [{"prompt": "?", "text": text, "additional_info": {}} for text in texts]
    path = tmp_path / "infer.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_answers_of_a_file_leave_results_samples_and_a_report(answers, data, tmp_path, capsys):
    output = tmp_path / "scores"
    run_predictions(answers, "MedQA", "strict", Display(), data=data, output=output)
    score = read_results(output)["tasks"]["medqa"]["protocols"]["generate"]["scores"]["accuracy"]
    assert score["outcomes"] == [1, 0]
    assert [sample["parsed"] for sample in read_samples(output / "samples.jsonl")] == ["B", "A"]
    assert (output / "report.html").is_file()
    said = capsys.readouterr().err
    assert "50.0 %" in said
    assert f"report: {output / 'report.html'}" in said


def test_answers_are_not_written_if_told_so(answers, data, tmp_path):
    output = tmp_path / "scores"
    for write_samples in (True, False):
        run_predictions(
            answers, "medqa", "strict", Display(is_shown=False), data=data, output=output,
            write_samples=write_samples,
        )  # fmt: skip
    assert sorted(path.name for path in output.glob("[!.]*")) == [
        "report.html", "report.md", "results.json",
    ]  # fmt: skip
    assert "The answer is" not in (output / "report.html").read_text()


def test_answers_are_not_scored_into_a_folder_in_use(answers, data, tmp_path):
    output = tmp_path / "scores"
    with hold(output), pytest.raises(WorkdirError, match="is in use"):
        run_predictions(
            answers, "medqa", "strict", Display(is_shown=False), data=data, output=output
        )
    assert not (output / "results.json").exists()


def test_scores_by_other_rules_are_kept(answers, data, tmp_path):
    output, display = tmp_path / "scores", Display(is_shown=False)
    run_predictions(answers, "medqa", "strict", display, data=data, output=output)
    run_predictions(answers, "medqa", "strict", display, data=data, output=output)
    with pytest.raises(WorkdirError, match=r"other settings.*--overwrite"):
        run_predictions(answers, "medqa", "reference", display, data=data, output=output)
    assert read_results(output)["settings"]["rules"] == "strict"
    run_predictions(
        answers, "medqa", "reference", display, data=data, output=output, overwrite=True
    )
    assert read_results(output)["settings"]["rules"] == "reference"


@pytest.fixture
def prompts(tmp_path) -> pathlib.Path:
    """Two prompts."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "What is asthma?"}\n{"prompt": "And gout?"}\n')
    return path


def answer(base, prompts, target, *, dtype="float32", **more):
    model, generation = Asked(str(base), dtype=dtype), Generation(max_new_tokens=3, batch=2)
    run_prompts(model, prompts, target, generation, Display(), **more)


def test_answers_that_are_there_are_kept(prompts, tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_text("hours of work")
    with pytest.raises(WorkdirError, match="--overwrite"):
        answer("/nowhere", prompts, target)
    assert target.read_text() == "hours of work"


def test_prompts_are_answered_in_sight_and_go_on_in_the_same_dtype_only(
    prompts, tmp_path, monkeypatch, capsys
):
    base, target = write_base(tmp_path / "base"), tmp_path / "out.jsonl"
    finish = prompts_module._Part.finish
    monkeypatch.setattr(prompts_module._Part, "finish", lambda part: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer(base, prompts, target)
    assert "answers 2/2" in capsys.readouterr().err
    monkeypatch.setattr(prompts_module._Part, "finish", finish)
    with pytest.raises(PromptsError, match="another source, model or settings"):
        answer(base, prompts, target, dtype="bfloat16")
    answer(base, prompts, target)
    answer(base, prompts, target, overwrite=True)
    assert len(target.read_text().splitlines()) == 2


def test_without_an_output_nothing_is_written(answers, data, tmp_path):
    before = set(tmp_path.rglob("*"))
    run_predictions(answers, "medqa", "strict", Display(is_shown=False), data=data)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("digest", "limit", "said"),
    [("other", 0, "other model"), ("same", 1, "other settings"), ("same", 0, "other data")],
)
def test_results_of_another_evaluation_are_kept(data, tmp_path, monkeypatch, digest, limit, said):
    output = tmp_path / "scores"
    model = {**results_of({})["model"], "digest": "same"}
    tasks = load_tasks(data, [])
    mine = unanswered(model, tasks, Options(), versions())
    if said == "other data":
        write(data, "medqa", record("Which?\nA. one\nB. two", "A"))
    known = write_results(output, {**mine, "tasks": {"medqa": task_result("MedQA", right=1)}})
    before = known.read_bytes()
    monkeypatch.setattr(evaluation, "open_subject", lambda *_: (None, {**model, "digest": digest}))
    asked = Evaluation(Asked("m"), data, ("all",), output, Options(limit=limit))
    with pytest.raises(WorkdirError, match=rf"\({said}\).*--overwrite"):
        run_evaluation(asked, Display(is_shown=False))
    assert known.read_bytes() == before


@pytest.mark.parametrize(
    ("judged", "protocols", "said"),
    [
        (("meqsum",), ("generate",), "no task meqsum in the results; there are medqa"),
        (("medqa",), ("likelihood",), "no written answers to medqa"),
        ((), ("generate",), "no task is scored by a judge; name some of medqa"),
    ],
)
def test_a_judge_with_nothing_to_mark_is_refused_before_the_work(
    answers, data, tmp_path, judged, protocols, said
):
    marking = Marking(Endpoint("http://127.0.0.1:9/v1", "m", key=""), judged)
    asked = Evaluation(
        Asked("/nowhere"), data, ("all",), tmp_path / "a", Options(protocols), marking=marking
    )
    with pytest.raises(ValueError, match=said):
        run_evaluation(asked, Display(is_shown=False))
    if protocols == ("generate",):
        with pytest.raises(ValueError, match=said):
            run_predictions(
                answers, "MedQA", "strict", Display(is_shown=False), data=data,
                output=tmp_path / "a", marking=marking,
            )  # fmt: skip
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("other", ["folder", "prompts.jsonl", "folder/../prompts.jsonl"])
def test_neither_prompts_nor_a_folder_are_replaced_by_answers(prompts, tmp_path, other):
    (tmp_path / "folder").mkdir()
    before = prompts.read_bytes()
    with pytest.raises(WorkdirError, match="name one in it|name another"):
        answer("/nowhere", prompts, tmp_path / other, overwrite=True)
    assert prompts.read_bytes() == before
