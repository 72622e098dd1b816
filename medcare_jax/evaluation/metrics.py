"""Numbers from per-item outcomes: mean score, bootstrap interval, paired test. NumPy only."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES = 2_000


class Estimate(NamedTuple):
    """A mean score over items with its 95 % interval, all in [0, 1]."""

    score: float
    low: float
    high: float


def estimate(outcomes: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of per-item outcomes and its 95 % percentile-bootstrap interval.

    Accuracy, exact match and format validity are this mean over outcomes of 0 or 1. If every
    outcome is the same, so is every resample, and the interval has no width: it then says
    nothing about how rare an exception is.

    Args:
      outcomes: one number in [0, 1] per item.
      seed: seed of the resampling, so that a report can be made again to the last digit.

    Raises:
      ValueError: if there is no outcome.

    References:
      Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3

    Examples:
      >>> estimate([1, 1, 0, 1]).score
      0.75
    """
    values = np.asarray(outcomes, np.float64)
    if not values.size:
        raise ValueError("expected at least one outcome to average, got none: is the task empty?")
    draws = np.random.default_rng(seed).integers(values.size, size=(_RESAMPLES, values.size))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def mcnemar_exact(before: Sequence[float], after: Sequence[float]) -> float:
    """The two-sided p-value that two models are right equally often on the same items.

    Only items on which the two differ carry information; under the null each such item is a
    fair coin, so the p-value is an exact binomial tail and holds for any number of items.

    Args:
      before: outcomes 0 or 1 of one model.
      after: outcomes 0 or 1 of the other, item by item in the same order.

    Raises:
      ValueError: if the lengths differ or an outcome is neither 0 nor 1.

    References:
      McNemar, Note on the sampling error of the difference between correlated proportions, 1947

    Examples:
      >>> mcnemar_exact([0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1])
      0.0625
    """
    if len(before) != len(after):
        raise ValueError(
            f"expected outcomes of the same items, got {len(before)} and {len(after)} of them; "
            "score both models on the same task file"
        )
    if bad := {x for x in (*before, *after) if x not in (0, 1)}:
        raise ValueError(f"expected outcomes 0 or 1, got {sorted(bad)[:3]}")
    gained = sum(a > b for b, a in zip(before, after, strict=True))
    lost = sum(a < b for b, a in zip(before, after, strict=True))
    discordant = gained + lost
    tail: int = sum(math.comb(discordant, k) for k in range(min(gained, lost) + 1))
    return min(1.0, tail / (1 << discordant) * 2)
