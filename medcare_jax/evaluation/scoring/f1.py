"""Precision, recall and F1 over sets of findings and over labels."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

Average = Literal["macro", "weighted"]


class F1(NamedTuple):
    """Precision, recall and F1, each in [0, 1]; 0 where nothing is there to divide by."""

    precision: float
    recall: float
    f1: float


class Counts(NamedTuple):
    """Findings that are right, superfluous and missed."""

    right: int
    superfluous: int
    missed: int


def count(predicted: set, gold: set) -> Counts:
    """Counts of one item's findings.

    Examples:
      >>> count({"a", "b"}, {"b", "c", "d"})
      Counts(right=1, superfluous=1, missed=2)
    """
    return Counts(len(predicted & gold), len(predicted - gold), len(gold - predicted))


def micro_f1(counts: Sequence[Counts]) -> F1:
    """F1 of the findings of all items together.

    Examples:
      >>> micro_f1([Counts(1, 1, 0), Counts(1, 0, 0)])
      F1(precision=0.6666666666666666, recall=1.0, f1=0.8)
    """
    right, superfluous, missed = (sum(column) for column in zip(*counts, strict=True))
    if not right:
        return F1(0.0, 0.0, 0.0)
    return _f1(right, right + superfluous, right + missed)


def label_f1(
    predicted: Sequence[str],
    gold: Sequence[str],
    average: Average,
    *,
    labels: Sequence[str] | None = None,
) -> F1:
    """F1 of one label per item, averaged over labels.

    Args:
      predicted: what was said, item by item.
      gold: what is right.
      average: `macro`: every label counts alike; `weighted`: as often as it is gold.
      labels: those averaged over; by default all that occur, as gold or as a prediction, which is
        what scikit-learn does: each wrong word of a macro average is a label of its own.

    Raises:
      ValueError: there is no item, or the lists differ in length.

    Examples:
      >>> label_f1(["x", "y"], ["x", "x"], "weighted").recall
      0.5
      >>> label_f1(["x", "z"], ["x", "y"], "macro").f1
      0.3333333333333333
    """
    if not gold or len(predicted) != len(gold):
        raise ValueError(f"expected a label for each item, got {len(predicted)} of {len(gold)}")
    hits = Counter(g for p, g in zip(predicted, gold, strict=True) if p == g)
    said, true = Counter(predicted), Counter(gold)
    labels = sorted(said.keys() | true.keys()) if labels is None else labels
    rows = [_f1(hits[label], said[label], true[label]) for label in labels]
    weights = [1 if average == "macro" else true[label] for label in labels]
    total = sum(weights)
    return F1(
        *(
            sum(w * value for w, value in zip(weights, column, strict=True)) / total
            for column in zip(*rows, strict=True)
        )
    )


def _f1(right: int, said: int, true: int) -> F1:
    """F1 from a number of hits, of predictions and of gold."""
    precision, recall = right / said if said else 0.0, right / true if true else 0.0
    total = precision + recall
    return F1(precision, recall, 2 * precision * recall / total if total else 0.0)
