"""Test files of both kinds to items; every bad one refused by place and never by text."""

import json

import pytest
from absl import logging

from medcare_jax.data.icd10 import write_icd10_tasks
from medcare_jax.data.records import RecordError
from medcare_jax.evaluation.tasks import TASKS, ChoiceItem, load_tasks


def write(folder, name, *items):
    path = folder / TASKS[name].file
    path.write_text("\n".join(json.dumps(item, ensure_ascii=False) for item in items))
    return path


def record(prompt, answer, number=0, /, **gold):
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "eval": {"sample_id": f"s{number}", "answer": answer, **gold}}


LETTERS = record("Which?\nA. one\nB. two", "B")


def test_options_by_text(tmp_path):
    write(tmp_path, "icd10_unseen", record("Which?", "two", options=["one", "two"], type="title"))
    (task,) = load_tasks(tmp_path)
    assert task.name == "icd10_unseen"
    assert task.spec.kind == "knowledge-intensive"
    (item,) = task.items
    assert item == ChoiceItem("s0", "title", item.turns, ("one", "two"), 1)
    assert [(turn.role, turn.text) for turn in item.turns] == [("human", "Which?")]


def test_options_by_letter_leave_out_questions_with_several_answers(tmp_path):
    many = record("哪些？\nA. 甲\nB. 乙\nC. 丙", "AC", 1)
    write(tmp_path, "cmexam", LETTERS, many)
    (task,) = load_tasks(tmp_path)
    assert [(item.options, item.gold) for item in task.items] == [(("one", "two"), 1)]
    assert task.num_multiple == 1


def test_requests_for_a_format(tmp_path):
    listed = '[{"code": "I10", "title": "Hypertension"}]'
    write(
        tmp_path,
        "icd10_coding",
        record("Code it.", "I10 | Hypertension", format="code_title"),
        record("List it.", listed, 1, format="json"),
    )
    (task,) = load_tasks(tmp_path)
    assert task.spec.metric == "exact_match"
    assert [(item.form, item.gold) for item in task.items] == [
        ("code_title", "I10 | Hypertension"),
        ("json", listed),
    ]


def test_a_limit_is_spread_over_the_file(tmp_path):
    items = [record("Which?\nA. one\nB. two", "A", number) for number in range(10)]
    write(tmp_path, "medqa", *items)
    (task,) = load_tasks(tmp_path, limit=3)
    assert [item.id for item in task.items] == ["s0", "s3", "s6"]
    assert len(load_tasks(tmp_path, limit=99)[0].items) == 10


def test_the_demo_tasks_are_read(tmp_path):
    write_icd10_tasks(tmp_path, seed=0, mka_knowledge=24, mka_alignment=6, da_alignment=6, test=12)
    tasks = {task.name: task for task in load_tasks(tmp_path / "test")}
    assert list(tasks) == ["icd10_unseen", "icd10_retained", "icd10_coding"]
    assert all(len(task.items) == 12 for task in tasks.values())
    assert {len(item.options) for item in tasks["icd10_unseen"].items} == {4}
    assert {item.form for item in tasks["icd10_coding"].items} == {"code_title", "json"}


def test_real_files_are_read(shared):
    tasks = {task.name: task for task in load_tasks(shared / "data" / "test")}
    counts = {name: (len(task.items), task.num_multiple) for name, task in tasks.items()}
    assert counts == {
        "medqa": (250, 0),
        "medmcqa": (300, 0),
        "mmlu_med": (210, 0),
        "pubmedqa": (150, 0),
        "cmexam": (250 - counts["cmexam"][1], counts["cmexam"][1]),
        "cmmlu_med": (200, 0),
    }
    assert counts["cmexam"][1] > 0
    for task in tasks.values():
        assert all(isinstance(item, ChoiceItem) and len(item.options) > 1 for item in task.items)


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
        (["zzz"], ValueError, "the nearest are cmexam, cmmlu_med"),
        (["cmexam"], FileNotFoundError, "CMExam.json"),
    ],
)
def test_a_name_without_a_task_or_file_is_refused(tmp_path, names, error, message):
    write(tmp_path, "medqa", LETTERS)
    with pytest.raises(error, match=message):
        load_tasks(tmp_path, names)


def test_a_folder_without_test_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found none of CMExam.json"):
        load_tasks(tmp_path)


SECRET = "patient Doe"


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"conversations": record(SECRET, "A")["conversations"]}, "eval.answer"),
        (record(SECRET, "A", answer=[SECRET]), "eval.answer"),
        (record(SECRET, "B"), "eval.answer"),
        (record(f"{SECRET}\nA. one\nB. two", "C"), "eval.answer"),
        (record(SECRET, SECRET, options=["one", "two"]), "eval.options"),
        (record(SECRET, "one", options=["one", "one"]), "eval.options"),
        (record(SECRET, "one", options="one"), "eval.options"),
        (record(SECRET, SECRET, format="code_title"), "eval.answer"),
        (record(SECRET, "I10 | Hypertension", format="xml"), "eval.format"),
    ],
)
def test_an_item_without_usable_gold_is_refused_by_its_line(tmp_path, bad, field):
    path = write(tmp_path, "medqa", LETTERS, bad)
    with pytest.raises(RecordError) as caught:
        load_tasks(tmp_path)
    assert str(caught.value).startswith(f"{path}:2: {field}: ")
    assert SECRET not in str(caught.value)


def test_a_prompt_after_the_gold_is_refused(tmp_path):
    item = record("Which?\nA. one\nB. two", "A")
    item["conversations"].append({"from": "human", "value": "And now?"})
    write(tmp_path, "medqa", item)
    with pytest.raises(RecordError, match="expected a prompt, then its gold"):
        load_tasks(tmp_path)


def test_a_file_of_both_protocols_is_refused(tmp_path):
    write(tmp_path, "medqa", LETTERS, record("Code it.", "I10 | Flu", 1, format="code_title"))
    with pytest.raises(ValueError, match="got 1 and 1 of 2 items"):
        load_tasks(tmp_path)
