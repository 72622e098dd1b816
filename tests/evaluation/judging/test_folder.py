"""Marks added to an evaluation on disk, in part if the judge fails in part."""

import dataclasses
import json

import pytest

from medcare_jax.evaluation.judging.endpoint import Endpoint
from medcare_jax.evaluation.judging.folder import judge_folder
from medcare_jax.evaluation.judging.rubric import CRITERIA
from medcare_jax.evaluation.metrics import estimate
from medcare_jax.evaluation.results import read_results, read_samples, write_results
from tests.evaluation.judging.server import GOOD, always, serve
from tests.evaluation.judging.test_judge import by_answer
from tests.evaluation.report.evaluations import results_of, task_result


def endpoint(url):
    return Endpoint(url, "m", key="k-very-secret", first_wait=0.01, tries=2)


@pytest.fixture
def folder(tmp_path):
    """Six open answers that wait for a judge, and one exam."""
    open_task = task_result("CCTE", "judge", items=6, protocols=("generate",), right=None)
    write_results(
        tmp_path,
        results_of({"ccte": open_task, "medqa": task_result("MedQA", "accuracy", items=4)}),
    )
    lines = [
        {
            "task": "ccte" if i < 6 else "medqa",
            "protocol": "generate",
            "id": str(i),
            "type": "ward" if i % 2 else "clinic",
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "output": f"answer {i}",
            "parsed": None,
            "gold": "gold",
            "scores": {},
            "details": {},
        }
        for i in range(10)
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_marks_enter_both_files(folder):
    told = []
    with serve(by_answer({1: GOOD.replace("5", "1")})) as (stub, url):
        judge_folder(folder, endpoint(url), say=told.append)
    assert len(stub.requests) == 6, "only the open answers left the machine"
    results = read_results(folder)
    assert results["status"] == "complete"
    scores = results["tasks"]["ccte"]["protocols"]["generate"]["scores"]
    assert scores["fluency"]["outcomes"] == [5, 1, 5, 5, 5, 5]
    assert scores["judge"]["score"] == pytest.approx((5 * 4 + 3) / 6)
    assert scores["judge"]["low"] <= scores["judge"]["score"] <= scores["judge"]["high"]
    assert scores["fluency"]["types"]["ward"] == {"score": pytest.approx(11 / 3), "items": 3}
    samples = list(read_samples(folder / "samples.jsonl"))
    assert samples[1]["scores"] == {
        "judge": 3.0, "fluency": 1, "relevance": 4, "completeness": 3, "proficiency": 4,
    }  # fmt: skip
    assert samples[7]["scores"] == {}
    assert told == ["judge: 6 requests, 0 from the cache, 600 + 60 tokens"]
    assert results["settings"]["judge"]["ccte"]["model"] == "m"


def test_the_interval_is_drawn_with_the_evaluations_seed(folder):
    marks, found = (1, 2, 5, 3, 5, 4), {}
    table = {i: GOOD.replace("5", str(mark)) for i, mark in enumerate(marks)}
    for seed in (0, 5):
        results = read_results(folder)
        results["settings"]["seed"] = seed
        write_results(folder, results)
        with serve(by_answer(table)) as (_, url):
            task = judge_folder(folder, endpoint(url))["tasks"]["ccte"]
        found[seed] = task["protocols"]["generate"]["scores"]["fluency"]["low"]
    assert found[0] != found[5], "of these six marks the two seeds are known to differ"
    for seed, low in found.items():
        assert low == pytest.approx(1 + 4 * estimate([(m - 1) / 4 for m in marks], seed=seed).low)


@pytest.mark.parametrize("mark", [1, 5])
def test_marks_at_one_end_leave_room_towards_the_other(folder, mark):
    same = json.dumps(dict.fromkeys(CRITERIA, mark))
    with serve(always(same)) as (_, url):
        judge_folder(folder, endpoint(url))
    found = read_results(folder)["tasks"]["ccte"]["protocols"]["generate"]["scores"]["judge"]
    # Wilson's bound after 0 of 6 is z² / (6 + z²), here of a scale that is 4 wide.
    away = 4 * 1.96**2 / (6 + 1.96**2)
    expected = (1, 1, 1 + away) if mark == 1 else (5, 5 - away, 5)
    assert (found["score"], found["low"], found["high"]) == pytest.approx(expected, abs=1e-3)


def test_a_task_whose_items_are_all_too_long_keeps_nobody_waiting(folder):
    results = read_results(folder)
    empty = task_result("CMB", items=0, right=None, left_out=3) | {"protocols": {}}
    write_results(folder, {**results, "tasks": results["tasks"] | {"cmb": empty}})
    with serve(always(GOOD)) as (_, url):
        assert judge_folder(folder, endpoint(url))["status"] == "complete"


def test_what_fails_is_partial_and_asked_for_again(folder):
    told = []
    with serve(by_answer({0: "no", 3: "no"})) as (stub, url):
        judge_folder(folder, endpoint(url), say=told.append)
        results = read_results(folder)
        assert results["status"] == "partial"
        assert results["tasks"]["ccte"]["left_out"]["not marked by the judge"] == 2
        outcomes = results["tasks"]["ccte"]["protocols"]["generate"]["scores"]["judge"]["outcomes"]
        assert outcomes == [4.0] * 4
        assert "2 of 6 answers have no marks (2 no JSON object with every mark)" in told[-1]
        stub.plan = always()
        judge_folder(folder, endpoint(url))
    assert len(stub.requests) == 8
    results = read_results(folder)
    assert results["status"] == "complete"
    assert results["tasks"]["ccte"]["left_out"]["not marked by the judge"] == 0
    record = json.loads((folder / "judge.json").read_text())
    assert (record["requests"], record["cached"], record["marked"]) == (2, 4, 6)


def test_a_judge_that_marks_nothing_leaves_no_scores(folder):
    with serve(always("no")) as (_, url):
        judge_folder(folder, endpoint(url))
    assert read_results(folder)["tasks"]["ccte"]["protocols"]["generate"]["scores"] == {}
    assert read_results(folder)["status"] == "partial"


def test_the_key_is_in_no_file(folder):
    with serve(always()) as (_, url):
        judge_folder(folder, endpoint(url))
    for path in folder.rglob("*"):
        assert path.is_dir() or "k-very-secret" not in path.read_text()


def test_any_task_can_be_named(folder):
    with serve(always()) as (stub, url):
        judge_folder(folder, endpoint(url), tasks=["medqa"])
        assert len(stub.requests) == 4
        with pytest.raises(ValueError, match="no task nope in the results; there are ccte, medqa"):
            judge_folder(folder, endpoint(url), tasks=["nope"])
    scores = read_results(folder)["tasks"]["medqa"]["protocols"]["generate"]["scores"]
    assert set(scores) == {"accuracy", "judge", *CRITERIA}


def test_each_task_names_its_own_judge(folder):
    with serve(always()) as (_, url):
        judge_folder(folder, endpoint(url), tasks=["ccte"])
        judge_folder(folder, dataclasses.replace(endpoint(url), model="n"), tasks=["medqa"])
    judges = read_results(folder)["settings"]["judge"]
    assert {task: judge["model"] for task, judge in judges.items()} == {"ccte": "m", "medqa": "n"}


def test_marks_of_one_task_do_not_complete_another(folder):
    with serve(by_answer({0: "no"})) as (_, url):
        judge_folder(folder, endpoint(url), tasks=["ccte"])
        judge_folder(folder, endpoint(url), tasks=["medqa"])
    assert read_results(folder)["status"] == "partial"


def test_without_samples_nothing_is_asked(folder):
    (folder / "samples.jsonl").unlink()
    with serve(always()) as (stub, url):
        with pytest.raises(FileNotFoundError, match=r"samples\.jsonl"):
            judge_folder(folder, endpoint(url))
    assert stub.requests == []


def test_only_written_answers_are_marked(folder):
    results = read_results(folder)
    medqa = task_result("MedQA", items=4, protocols=("likelihood",))
    write_results(folder, {**results, "tasks": {**results["tasks"], "medqa": medqa}})
    with serve(always()) as (stub, url):
        with pytest.raises(ValueError, match=r"no written answers to medqa .* generate first"):
            judge_folder(folder, endpoint(url), tasks=["medqa"])
        assert not stub.requests
        judge_folder(folder, endpoint(url))
    assert len(stub.requests) == 6
