"""Records to items, family by family; a bad gold is refused by place and never by text."""

import pytest

from medcare_jax.data.records import RecordError, parse_record
from medcare_jax.evaluation.items import read_item
from tests.evaluation.records import parsed, record

SECRET = "patient Doe"
CHOICE = f"{SECRET}\nA. one\nB. two\nC. three"
LISTED = '[{"code": "I10", "title": "Hypertension"}]'


@pytest.mark.parametrize(
    ("gold", "letters"),
    [({}, "B"), ({"answer": "A,C"}, "AC"), ({"answer": "two", "answer_idx": "B"}, "B")],
)
def test_an_exam_has_options_by_letter(gold, letters):
    item = read_item(parsed(CHOICE, "B", type="surgery", **gold), "exam")
    assert (item.id, item.type, item.letters) == ("s0", "surgery", letters)
    assert item.options == {"A": "one", "B": "two", "C": "three"}
    assert [turn.role for turn in item.turns] == ["human"]


def test_options_by_text():
    item = read_item(parsed("Which?", "two", options=["one", "two"]), "options")
    assert (item.gold, list(item.options)) == ("two", ["one", "two"])


def test_requests_for_a_format():
    item = read_item(parsed("List it.", LISTED, format="json"), "diagnoses")
    assert (item.gold, item.choices) == (LISTED, ("json",))


def test_entities_sections_labels_summaries_and_open_answers():
    entity = [{"entity": "flu", "type": "Disease"}]
    found = read_item(parsed("?", "...", answer=entity, answer_choices=["Disease"]), "findings")
    assert (found.gold, found.choices) == (entity, ("Disease",))
    section = {"section_header": "CC", "section_text": "Cough."}
    assert read_item(parsed("?", "...", answer=section, answer_choices=["CC"]), "section").gold == (
        section
    )
    assert read_item(parsed("?", "x", answer_choices=["x", "y"]), "label").gold == "x"
    assert read_item(parsed("?", "Short."), "summary").gold == "Short."
    assert read_item(parsed("?", '{"level": 2}'), "text").gold == '{"level": 2}'
    open_ = read_item(parsed("?", "Long.", description="d", question="q", solution="s"), "open")
    assert (open_.gold, open_.facts) == (
        "s",
        {"description": "d", "question": "q", "solution": "s"},
    )


def test_cblue_gold_is_read_from_the_text():
    item = read_item(
        parsed("?", "疾病实体：癌", task_dataset="CMeEE-V2", answer_choices=["疾病"]), "cblue"
    )
    assert (item.type, item.gold) == ("CMeEE-V2", [{"entity": "癌", "type": "疾病"}])


@pytest.mark.parametrize(
    ("family", "answer", "gold", "field"),
    [
        ("exam", "D", {}, "eval.answer"),
        ("exam", SECRET, {}, "eval.answer"),
        ("exam", "A", {"answer": ["A"]}, "eval.answer"),
        ("options", SECRET, {"options": ["one", "two"]}, "eval.options"),
        ("options", "one", {"options": ["one", "one"]}, "eval.options"),
        ("options", "one", {"options": ["one", "two", "two"]}, "eval.options"),
        ("options", "one", {"options": "one"}, "eval.options"),
        ("diagnoses", SECRET, {"format": "code_title"}, "eval.answer"),
        ("diagnoses", "I10 | Hypertension", {"format": "xml"}, "eval.format"),
        ("findings", SECRET, {"answer_choices": ["x"]}, "eval.answer"),
        ("findings", "x", {"answer": []}, "eval.answer_choices"),
        ("cblue", "x", {"task_dataset": SECRET[:0]}, "eval.task_dataset"),
        ("cblue", "x", {"task_dataset": []}, "eval.task_dataset"),
        ("summary", "x", {"sample_id": [SECRET]}, "eval.sample_id"),
        ("summary", "x", {"type": {"patient": SECRET}}, "eval.type"),
        ("summary", "x", {"type": [SECRET]}, "eval.type"),
        ("summary", "x", {"type": False}, "eval.type"),
        ("summary", "x", {"type": 3}, "eval.type"),
        ("summary", "x", {"type": SECRET * 10}, "eval.type"),
        ("summary", "x", {"type": f"one\n{SECRET}"}, "eval.type"),
        ("label", SECRET, {"answer_choices": ["x"]}, "eval.answer"),
        ("section", "x", {"answer_choices": ["x"]}, "eval.answer"),
        ("summary", "x", {"answer": None}, "eval.answer"),
        ("text", "x", {"answer": {"level": 2}}, "eval.answer"),
    ],
)
def test_an_item_without_usable_gold_is_refused(family, answer, gold, field):
    with pytest.raises(RecordError) as caught:
        read_item(parsed(CHOICE, answer, **gold), family)
    assert str(caught.value).startswith(f"file.json:1: {field}: ")
    assert SECRET not in str(caught.value)


def test_missing_gold_and_a_prompt_after_it_are_refused():
    item = record(CHOICE, "A")
    with pytest.raises(RecordError, match="eval: expected an object"):
        read_item(parse_record({"conversations": item["conversations"]}, "f:1"), "exam")
    item["conversations"].append({"from": "human", "value": "And now?"})
    with pytest.raises(RecordError, match="expected a prompt, then its gold"):
        read_item(parse_record(item, "f:1"), "exam")


def test_an_id_of_null_is_no_id():
    item = read_item(parsed("?", "Short.", sample_id=None), "summary")
    assert item.id == "file.json:1"
    assert read_item(parsed("?", "Short.", sample_id=7), "summary").id == "7"
