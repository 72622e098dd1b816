"""F1: hand-made cases, and scikit-learn's report where it is installed."""

import pytest

from medcare_jax.evaluation.scoring.f1 import F1, Counts, count, label_f1, micro_f1


def test_findings_of_all_items_count_together():
    assert micro_f1([Counts(3, 1, 0), Counts(0, 0, 2)]) == pytest.approx((3 / 4, 3 / 5, 2 / 3))
    assert micro_f1([Counts(0, 4, 0)]) == F1(0, 0, 0)
    assert micro_f1([Counts(0, 0, 0)]) == F1(0, 0, 0)


def test_findings_are_counted_once():
    assert count(set("aab"), set("bc")) == Counts(1, 1, 1)


GOLD = ["a", "a", "a", "b", "c"]
SAID = ["a", "b", "x", "b", ""]


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_averages_are_scikit_learns(average):
    metrics = pytest.importorskip("sklearn.metrics")
    report = metrics.classification_report(GOLD, SAID, output_dict=True, zero_division=0)
    expected = report[f"{average} avg"]
    names = ("precision", "recall", "f1-score")
    assert label_f1(SAID, GOLD, average) == pytest.approx([expected[name] for name in names])


def test_averages_by_hand():
    a, b = F1(1, 1 / 3, 1 / 2), F1(1 / 2, 1, 2 / 3)
    weighted = [(3 * x + y) / 5 for x, y in zip(a, b, strict=True)]
    assert label_f1(SAID, GOLD, "weighted") == pytest.approx(weighted)
    assert label_f1(SAID, GOLD, "macro").f1 == pytest.approx((a.f1 + b.f1) / 5)
    assert label_f1(SAID, GOLD, "macro", labels="abc").f1 == pytest.approx((a.f1 + b.f1) / 3)


def test_a_label_per_item_is_needed():
    with pytest.raises(ValueError, match="got 1 of 2"):
        label_f1(["a"], ["a", "b"], "macro")
