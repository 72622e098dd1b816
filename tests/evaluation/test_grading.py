"""One answer against its gold, family by family."""

import pytest

from medcare_jax.data.records import open_records
from medcare_jax.evaluation.grading import grade
from medcare_jax.evaluation.items import Item
from medcare_jax.evaluation.tasks import TASKS, load_tasks

ENTITY = {"entity": "flu", "type": "Disease"}


def graded(task, output, gold, rules="reference", **fields):
    return grade(TASKS[task], Item("1", fields.pop("type", ""), (), gold, **fields), output, rules)


def test_every_real_gold_text_is_fully_right(shared):
    for task in load_tasks(shared / "data" / "test"):
        for item, record in zip(task.items, open_records(task.path), strict=True):
            for rules in ("reference", "strict"):
                found = grade(task.spec, item, record.turns[-1].text, rules)
                scores = {n: s for n, s in found.scores.items() if n != "rouge_2"}  # of one word: 0
                assert min(scores.values()) > 1 - 1e-7, (task.name, item.id, scores)


def test_exams_follow_the_rules():
    options = {"A": "one", "B": "two"}
    both = graded("medqa", "The answer is A or B.", "B", options=options)
    assert (both.parsed, both.scores) == ("AB", {"accuracy": 1})
    both = graded("medqa", "The answer is A or B.", "B", "strict", options=options)
    assert (both.parsed, both.scores) == (None, {"accuracy": 0})


def test_formats_and_exact_answers_are_told_apart():
    for output, scores in [
        ("I10 | Flu\n", (1, 1)),
        ("I10 | Cold", (0, 1)),
        ("The code is I10.", (0, 0)),
    ]:
        found = graded("icd10_coding", output, "I10 | Flu", choices=("code_title",))
        assert tuple(found.scores.values()) == scores


def test_exact_answers_are_texts_or_json():
    assert graded("exact", " Yes.\n", "Yes.").scores == {"exact_match": 1}
    assert graded("exact", "yes.", "Yes.").scores == {"exact_match": 0}
    gold = '{"level": 2, "tests": ["ECG"]}'
    for output, scores in [
        ('{"tests":["ECG"],  "level": 2}', (1, 1)),
        ('{"level": 3, "tests": ["ECG"]}', (0, 1)),
        ("level 2", (0, 0)),
        ("2", (0, 0)),
    ]:
        assert tuple(graded("exact", output, gold).scores.values()) == scores


@pytest.mark.parametrize(
    ("output", "gold", "is_right"),
    [
        ('{"asthma": 1}', '{"asthma": true}', 0),
        ('{"asthma": true}', '{"asthma": true}', 1),
        ("[false]", "[0]", 0),
        ("[[1.0, null]]", "[[1, null]]", 1),
        ('[{"a": [1, 2]}]', '[{"a": [1]}]', 0),
    ],
)
def test_a_truth_value_is_no_number(output, gold, is_right):
    assert graded("exact", output, gold).scores["exact_match"] == is_right


def test_entities_are_counted():
    output = "They are:\nDisease entity: flu; cold"
    found = graded("ner", output, [ENTITY], choices=("Disease",))
    assert (found.counts, found.scores) == ((1, 1, 0), {"f1": pytest.approx(2 / 3)})
    assert graded("ner", "None.", [ENTITY], choices=("Disease",)).parsed is None
    nothing = graded("ner", "Disease entity:", [], choices=("Disease",))
    assert (nothing.parsed, nothing.scores) == ([], {"f1": 1})


def test_sections_need_both_lines():
    gold = {"section_header": "CC", "section_text": "Dry cough."}
    found = graded("mts_dialog", "Section header: CC\nSection text: dry cough", gold)
    assert found.scores == {"rouge_1": 1, "rouge_2": 1, "rouge_l": 1, "header_accuracy": 1}
    assert set(graded("mts_dialog", "Dry cough.", gold).scores.values()) == {0}


def test_a_label_outside_the_choices_is_unreadable():
    found = graded("medabs", " x\n", "x", choices=("x", "y"))
    assert (found.parsed, found.scores) == ("x", {"accuracy": 1})
    assert graded("medabs", "It is x", "x", choices=("x", "y")).parsed is None


def test_cblue_labels_are_kept_as_words_by_the_reference_only():
    fields = {"type": "KUAKE-QIC", "choices": ("病因分析",)}
    assert graded("cblue", "胡说", "病因分析", **fields).parsed == "胡说"
    assert graded("cblue", "胡说", "病因分析", "strict", **fields).parsed is None
    assert graded("cblue", "", "非上述类型", **fields).scores == {"accuracy": 1}


def test_an_open_answer_waits_for_its_judge():
    assert graded("ccte", "Drink water.", "Rest.").scores == {}
