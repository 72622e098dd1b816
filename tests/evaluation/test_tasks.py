"""The task table and its files: found by name, in part or whole; every bad one refused."""

import json

import pytest
from absl import logging

from medcare_jax.data.icd10 import write_icd10_tasks
from medcare_jax.data.records import RecordError
from medcare_jax.evaluation.scoring.cblue_score import PredictionError
from medcare_jax.evaluation.scoring.choice import REFERENCE
from medcare_jax.evaluation.tasks import TASKS, load_tasks, task_name
from tests.evaluation.records import record, write

LETTERS = record("Which?\nA. one\nB. two", "B")
PUBLISHED = (
    "medqa_mainland mmedbench_zh CMB CMExam cmmlu ceval PLE_Pharmacy PLE_TCM MedQA MedMCQA mmlu "
    "mmedbench_en CBLUE CCTE"
).split()


def test_every_published_file_has_a_task_and_the_references_rule(shared):
    assert len({task_name(name) for name in PUBLISHED}) == 14
    rules = json.loads(
        (shared / "golden" / "scoring" / "choice" / "dataset_to_function.json").read_text()
    )
    for name, rule in rules.items():
        assert TASKS[task_name(name)].rule == rule, name
    exams = [spec for spec in TASKS.values() if spec.family == "exam"]
    assert all(spec.rule in REFERENCE for spec in exams)


def test_a_limit_is_spread_over_the_file(tmp_path):
    write(tmp_path, "medqa", *(record("Which?\nA. one\nB. two", "A", n) for n in range(10)))
    (task,) = load_tasks(tmp_path, limit=3)
    assert [item.id for item in task.items] == ["s0", "s3", "s6"]
    assert len(load_tasks(tmp_path, limit=99)[0].items) == 10


def test_files_are_found_whatever_their_capitals(tmp_path):
    (tmp_path / "mmlu.jsonl").write_text(json.dumps(LETTERS))
    (task,) = load_tasks(tmp_path, ["MMLU_med"])
    assert (task.name, task.path.name) == ("mmlu_med", "mmlu.jsonl")
    assert [entry["file"] for entry in task.data_files()] == ["mmlu.jsonl"]


def test_a_file_is_told_from_its_copies(tmp_path):
    """An editor's copy is not scored in its place, and of two files none is by accident."""
    for name in ("MedQA.JSON", "MedQA.json~", "MedQA.json.bak"):
        (tmp_path / name).write_text(json.dumps(LETTERS))
    assert [task.path.name for task in load_tasks(tmp_path)] == ["MedQA.JSON"]
    (tmp_path / "medqa.jsonl").write_text(json.dumps(LETTERS))
    for names in ((), ("medqa",)):
        with pytest.raises(ValueError, match=r"'medqa' in .*, found MedQA\.JSON and medqa\.jsonl"):
            load_tasks(tmp_path, names)


def test_the_demo_tasks_are_read(tmp_path):
    write_icd10_tasks(tmp_path, seed=0, mka_knowledge=24, mka_alignment=6, da_alignment=6, test=12)
    tasks = {task.name: task for task in load_tasks(tmp_path / "test")}
    assert list(tasks) == ["icd10_unseen", "icd10_retained", "icd10_coding"]
    assert all(len(task.items) == 12 for task in tasks.values())
    assert {len(item.options) for item in tasks["icd10_unseen"].items} == {4}
    assert {item.choices for item in tasks["icd10_coding"].items} == {("code_title",), ("json",)}


def test_real_files_are_read(shared):
    tasks = {task.name: task for task in load_tasks(shared / "data" / "test")}
    assert {name: len(task.items) for name, task in tasks.items()} == {
        "cmexam": 250,
        "cmmlu_med": 200,
        "medqa": 250,
        "medmcqa": 300,
        "mmlu_med": 210,
        "pubmedqa": 150,
        "cblue": 128,
        "ner": 200,
        "ner_zh": 150,
        "mts_dialog": 100,
        "meqsum": 100,
        "medabs": 100,
    }
    assert sum(len(item.letters) > 1 for item in tasks["cmexam"].items) == 12
    files = [entry["file"] for entry in tasks["cblue"].data_files()]
    assert files == ["CBLUE.json", "CBLUE_structured.json"]


def test_a_limit_keeps_every_task_of_cblue(shared):
    (task,) = load_tasks(shared / "data" / "test", ["CBLUE"], limit=1)
    assert len(task.items) == len({item.type for item in task.items}) == 16


def test_structured_gold_of_other_items_is_refused(tmp_path):
    item = record("?", "相关", task_dataset="KUAKE-IR", answer_choices=["相关", "不相关"])
    write(tmp_path, "cblue", item)
    gold = {"KUAKE-IR": [{"sample_id": "other", "answer": "相关"}], "MedDG": []}
    (tmp_path / "CBLUE_structured.json").write_text(json.dumps(gold))
    with pytest.raises(PredictionError, match="CBLUE_structured.json: KUAKE-IR: .* 's0'"):
        load_tasks(tmp_path)
    gold["KUAKE-IR"] = [{"sample_id": "s0", "answer": "不相关"}]
    (tmp_path / "CBLUE_structured.json").write_text(json.dumps(gold))
    assert load_tasks(tmp_path)[0].items[0].gold == "不相关"


def test_files_of_no_task_are_named(tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: warned.append(text % values))
    write(tmp_path, "medqa", LETTERS)
    (tmp_path / "mine.json").write_text("[]")
    load_tasks(tmp_path)
    assert warned == ["files of no task, not scored: mine.json"]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["medqua"], ValueError, "unknown task 'medqua'; the nearest are medqa"),
        (["zzz"], ValueError, "the nearest are cblue, ccte"),
        (["cmexam"], FileNotFoundError, "CMExam.json"),
    ],
)
def test_a_name_without_a_task_or_file_is_refused(tmp_path, names, error, message):
    write(tmp_path, "medqa", LETTERS)
    with pytest.raises(error, match=message):
        load_tasks(tmp_path, names)


def test_a_folder_without_test_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found none of CBLUE"):
        load_tasks(tmp_path)


def test_a_bad_item_is_refused_by_its_line(tmp_path):
    path = write(tmp_path, "medqa", LETTERS, record("Which?\nA. one\nB. two", "C", 1))
    with pytest.raises(RecordError) as caught:
        load_tasks(tmp_path)
    assert str(caught.value).startswith(f"{path}:2: eval.answer: ")


def test_an_id_is_used_once(tmp_path):
    write(tmp_path, "medqa", LETTERS, LETTERS)
    with pytest.raises(RecordError, match="item 2: eval.sample_id"):
        load_tasks(tmp_path)
