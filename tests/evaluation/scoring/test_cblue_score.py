"""CBLUE's scores: the golden ones to 1e-9, and predictions of other items refused by name."""

import copy

import pytest

from medcare_jax.evaluation.scoring.cblue_score import (
    TASKS,
    PredictionError,
    headline_scores,
    score_cblue,
    score_task,
)
from tests.evaluation.scoring.golden import document


@pytest.fixture
def folder(shared):
    return shared / "golden" / "scoring" / "cblue_invented"


@pytest.mark.parametrize("damage", ["exact", "light", "heavy"])
def test_scores_are_the_references(folder, damage):
    expected = document(folder / f"{damage}.scores.json")
    predicted = document(folder / f"{damage}.structured.json")
    scores = score_cblue(document(folder / "gold_structured.json"), predicted, "reference")
    assert list(scores) == list(TASKS)
    for task, metrics in expected["per_task"].items():
        assert scores[task] == pytest.approx(metrics, abs=1e-9, rel=0), task
    assert headline_scores(scores) == pytest.approx(expected["summary"], abs=1e-9, rel=0)


def test_strict_gives_a_right_answer_everything(folder):
    gold = document(folder / "gold_structured.json")
    assert headline_scores(score_cblue(gold, gold, "strict"))["score"] == 1


def test_strict_averages_over_the_golds_labels_and_counts_accuracy():
    pairs = [("病因分析", "病因分析"), ("病情诊断", "胡说")]
    assert score_task("KUAKE-QIC", pairs, "strict")["macro-f1"] == 1 / 2
    assert score_task("KUAKE-QIC", pairs, "reference")["macro-f1"] == pytest.approx(1 / 3)
    known = score_task("KUAKE-QIC", pairs, "strict", labels=("病因分析", "病情诊断", "注意事项"))
    assert known["macro-f1"] == pytest.approx(1 / 3)
    pairs = [("相关", "相关"), ("相关", "不相关"), ("不相关", "不相关")]
    assert score_task("KUAKE-IR", pairs, "strict")["f1"] == pytest.approx(2 / 3)


def test_an_empty_label_is_the_first_of_the_task_for_the_reference_only():
    assert score_task("KUAKE-IR", [("相关", "")], "reference")["f1"] == 1
    assert score_task("KUAKE-IR", [("相关", "")], "strict")["f1"] == 0


def spoil(name, predicted):
    if name == "missing task":
        del predicted["MedDG"]
    elif name == "too few":
        predicted["MedDG"].pop()
    else:
        predicted["MedDG"].reverse()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing task", "MedDG: expected predictions, got none"),
        ("too few", "MedDG: expected 4 predictions, one per item, got 3"),
        ("order", "MedDG: expected prediction 1 to be of item 'inv-MedDG-0', got 'inv-MedDG-3'"),
    ],
)
def test_predictions_of_other_items_are_refused(folder, name, message):
    gold = document(folder / "gold_structured.json")
    predicted = copy.deepcopy(gold)
    spoil(name, predicted)
    with pytest.raises(PredictionError, match=message):
        score_cblue(gold, predicted, "reference")
