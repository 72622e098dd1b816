"""CBLUE's layouts: the golden structures, and what every rule does with a damaged answer."""

import pytest

from medcare_jax.evaluation.scoring.cblue_parse import PARSERS, parse
from tests.evaluation.scoring.golden import document, lines

SR = "IMCS-V2-SR"


def read(path, rules="reference"):
    """The structures of a golden file of answers."""
    structures = {task: [] for task in PARSERS}
    for line in lines(path):
        info = line["additional_info"]
        answer = parse(info["task_dataset"], line["text"], info["answer_choices"], rules)
        entry = {"sample_id": info["sample_id"], "answer": answer}
        structures[info["task_dataset"]].append(entry)
    return structures


@pytest.mark.parametrize("damage", ["exact", "light", "heavy"])
def test_structures_are_the_references(shared, damage):
    folder = shared / "golden" / "scoring" / "cblue_invented"
    expected = document(folder / f"{damage}.structured.json")
    found = read(folder / f"{damage}.questions.jsonl")
    for task in PARSERS:
        assert found[task] == expected[task], task


def test_real_gold_is_read_back_by_both_rules(shared):
    folder = shared / "data" / "test"
    gold = document(folder / "CBLUE_structured.json")
    found = {task: [] for task in PARSERS}
    for item in document(folder / "CBLUE.json"):
        info, text = item["eval"], item["conversations"][1]["value"]
        task, choices = info["task_dataset"], info["answer_choices"]
        answers = [parse(task, text, choices, rules) for rules in ("reference", "strict")]
        assert answers[0] == answers[1], info["sample_id"]
        found[task].append({"sample_id": info["sample_id"], "answer": answers[0]})
    for task in PARSERS:
        by_value = [sorted(map(str, item["answer"])) for item in found[task]]
        assert by_value == [sorted(map(str, item["answer"])) for item in gold[task]], task


def test_a_value_may_begin_with_the_next_key():
    (event,) = parse("CHIP-CDEE", "如下\n主体词：描述词：红", None, "reference")
    assert event == {"主体词": "描述词：红", "发生状态": "", "描述词": ["红"], "解剖部位": []}


def test_an_empty_line_is_an_event_of_the_reference_only():
    assert len(parse("CHIP-CDEE", "如下\n主体词：癌\n", None, "reference")) == 2
    assert len(parse("CHIP-CDEE", "如下\n主体词：癌\n", None, "strict")) == 1


def test_an_attribute_that_is_no_choice_is_guessed_by_the_reference_only():
    text = "如下\n发热：也许\n咳嗽：患有该症状\n多：一：个"
    neutral = {"entity": "发热", "attr": "无法根据上下文确定病人是否患有该症状"}
    known = {"entity": "咳嗽", "attr": "患有该症状"}
    assert parse(SR, text, ["患有该症状"], "reference") == [neutral, known]
    assert parse(SR, text, ["患有该症状"], "strict") == [known]


@pytest.mark.parametrize("task", sorted(PARSERS))
@pytest.mark.parametrize("rules", ["reference", "strict"])
@pytest.mark.parametrize("text", ["", "\n", "：，；。", "胡说\n八道"])
def test_any_text_is_read(task, rules, text):
    assert isinstance(parse(task, text, None, rules), str | list | dict)
