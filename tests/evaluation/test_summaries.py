"""Grades to scores: equal to the scoring functions, per type, with honest intervals."""

import pytest

from medcare_jax.evaluation.grading import grade
from medcare_jax.evaluation.items import Item
from medcare_jax.evaluation.scoring.cblue_score import TASKS as CBLUE
from medcare_jax.evaluation.scoring.cblue_score import headline_scores, score_cblue
from medcare_jax.evaluation.summaries import Graded, score_lines, summarise
from medcare_jax.evaluation.tasks import TASKS
from tests.evaluation.scoring.golden import document, lines


def one(type_="", counts=(), parsed=None, gold=None, id_="", **scores):
    return Graded(id_, type_, scores, counts, parsed, gold)


@pytest.mark.parametrize("rules", ["reference", "strict"])
@pytest.mark.parametrize("damage", ["exact", "light", "heavy"])
def test_cblue_is_scored_as_whole_files_are(shared, damage, rules):
    folder = shared / "golden" / "scoring" / "cblue_invented"
    structured = document(folder / "gold_structured.json")
    gold = {
        (task, entry["sample_id"]): entry["answer"]
        for task, entries in structured.items()
        for entry in entries
    }
    graded, predicted = [], {task: [] for task in CBLUE}
    for line in lines(folder / f"{damage}.questions.jsonl"):
        info = line["additional_info"]
        task, name = info["task_dataset"], info["sample_id"]
        item = Item(name, task, (), gold[task, name], choices=tuple(info["answer_choices"] or ()))
        found = grade(TASKS["cblue"], item, line["text"], rules)
        graded.append(Graded(name, task, found.scores, found.counts, found.parsed, item.gold))
        empty = {"label": "", "text": ""}.get(CBLUE[task].family, [])
        empty = {} if task == "IMCS-V2-MRG" else "" if isinstance(item.gold, str) else empty
        answer = empty if found.parsed is None else found.parsed
        predicted[task].append({"sample_id": name, "answer": answer})
    result = summarise(TASKS["cblue"], graded, rules, seed=0)["score"]
    expected = headline_scores(score_cblue(structured, predicted, rules))
    assert result["score"] == pytest.approx(expected["score"], abs=1e-9)
    for task, entry in result["types"].items():
        assert entry["score"] == pytest.approx(expected[f"{task}-{CBLUE[task].title}"], abs=1e-9)
    assert 0 <= result["low"] <= result["score"] <= result["high"] <= 1


def test_accuracy_by_type_is_the_references(shared):
    folder = shared / "golden" / "scoring" / "choice_typed"
    graded = []
    for line in lines(folder / "infer.jsonl"):
        item = Item("", line["additional_info"]["type"], (), line["additional_info"]["answer"])
        found = grade(TASKS["cmb"], item, line["text"], "reference")
        graded.append(Graded("", item.type, found.scores, (), None, None))
    result = summarise(TASKS["cmb"], graded, "reference", seed=0)["accuracy"]
    expected = document(folder / "expected.json")["accuracy_by_type"]
    assert result["score"] == expected.pop("AVERAGE")
    assert {name: entry["score"] for name, entry in result["types"].items()} == expected


def test_findings_are_counted_together():
    graded = [one("a", (3, 1, 0), f1=1), one("b", (0, 0, 2), f1=0)]
    scores = summarise(TASKS["ner"], graded, "strict", seed=0)
    assert list(scores) == ["f1", "precision", "recall"]
    assert [score["score"] for score in scores.values()] == pytest.approx([2 / 3, 3 / 4, 3 / 5])
    assert scores["f1"]["types"]["b"] == {"score": 0, "items": 1}
    assert scores["f1"]["outcomes"] == []


def test_labels_have_accuracy_first_and_macro_f1():
    graded = [one(parsed="x", gold="x", accuracy=1), one(parsed=None, gold="y", accuracy=0)]
    strict = summarise(TASKS["medabs"], graded, "strict", seed=0)
    assert list(strict) == ["accuracy", "macro_f1"]
    assert strict["macro_f1"]["score"] == pytest.approx(1 / 2)
    reference = summarise(TASKS["medabs"], graded, "reference", seed=0)
    assert reference["macro_f1"]["score"] == pytest.approx(1 / 3)


def test_a_metric_is_averaged_over_the_items_that_have_it():
    text, structure = one("a", exact_match=1), one("b", exact_match=0, valid_format=1)
    for graded in ([text, structure, text], [structure, text, text]):
        scores = summarise(TASKS["exact"], graded, "strict", seed=0)
        assert list(scores) == ["exact_match", "valid_format"]
        assert scores["exact_match"]["score"] == pytest.approx(2 / 3)
        assert scores["valid_format"]["outcomes"] == [1]
        assert scores["valid_format"]["types"] == {"b": {"score": 1, "items": 1}}


def test_items_that_lack_a_metric_are_not_among_its_items():
    first, second = one(id_="1", exact_match=1, valid_format=1), one(id_="2", exact_match=1)
    swapped = [second._replace(id="1"), first._replace(id="2")]
    before, after = (
        summarise(TASKS["exact"], graded, "strict", seed=0) for graded in ([first, second], swapped)
    )
    assert before["exact_match"]["items"] == after["exact_match"]["items"]
    assert before["valid_format"]["items"] != after["valid_format"]["items"]


def test_no_hit_is_no_proof_of_none():
    scores = summarise(TASKS["medqa"], [one(accuracy=0)] * 50, "strict", seed=0)
    assert (scores["accuracy"]["low"], scores["accuracy"]["score"]) == (0, 0)
    assert 0.05 < scores["accuracy"]["high"] < 0.08
    scores = summarise(TASKS["ner"], [one(counts=(0, 1, 1), f1=0)] * 50, "strict", seed=0)
    assert 0.05 < scores["f1"]["high"] < 0.08


def test_a_line_per_task_and_protocol():
    score = {"score": 0.5, "low": 0.25, "high": 0.75, "types": {}, "outcomes": []}
    entry = {
        "metric": "accuracy",
        "items": 4,
        "protocols": {"generate": {"scores": {"accuracy": score}}, "likelihood": {"scores": {}}},
    }
    (line,) = score_lines({"tasks": {"medqa": entry}})
    assert line.split() == "medqa generate accuracy 50.0 % (25.0 to 75.0), 4 items".split()
