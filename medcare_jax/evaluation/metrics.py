"""Scores with 95 % intervals, and paired tests. NumPy only."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_RESAMPLES = 2_000
_AT_ONCE = 250  # resamples whose weights exist at once: bounded memory for any number of items
_Z = 1.959963984540054  # the normal quantile of 97.5 %

Counts = Float[np.ndarray, "n k"]
Values = Sequence[float] | Float[np.ndarray, " n"]
Score = Callable[[Float[np.ndarray, "*r k"]], Float[np.ndarray, "*r"]]


class Estimate(NamedTuple):
    """A score over items with its 95 % interval."""

    score: float
    low: float
    high: float


class Statistic(NamedTuple):
    """A score of items that depends on sums over them alone.

    Attributes:
      counts: what each of n items adds to each of k sums.
      score: from sums to the score; leading axes are kept.
    """

    counts: Counts
    score: Score


def mean(values: Values) -> Statistic:
    """The mean of one number per item."""
    column = np.asarray(values, np.float64)
    return Statistic(np.stack([column, np.ones_like(column)], axis=1), _ratio)


def ratio(totals: Sequence[float], numbers: Sequence[float]) -> Statistic:
    """The mean where an item adds several numbers: their sum and how many they are."""
    return Statistic(np.stack([totals, numbers], axis=1).astype(np.float64), _ratio)


def estimate(outcomes: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of per-item outcomes and its 95 % interval.

    Outcomes of 0 or 1 get Wilson's interval: after 0 of 50 it still says that up to 7 % are
    possible, where every bootstrap resample is 0 and the interval would have no width. Others get
    the bootstrap of `estimate_of`.

    Args:
      outcomes: one number per item.
      seed: seed of the resampling, so that a report can be made again to the last digit.

    Raises:
      ValueError: if there is no outcome.

    Examples:
      >>> [round(value, 3) for value in estimate([1, 1, 0, 1])]
      [0.75, 0.301, 0.954]
      >>> round(estimate([0] * 50).high, 3)
      0.071
    """
    if not len(outcomes):
        raise ValueError("expected at least one outcome to average, got none: is the task empty?")
    if all(outcome in (0, 1) for outcome in outcomes):
        return wilson(sum(outcome == 1 for outcome in outcomes), len(outcomes))
    return estimate_of(mean(outcomes), seed=seed)


def wilson(hits: int, items: int) -> Estimate:
    """A share with Wilson's 95 % score interval.

    References:
      Wilson, Probable inference, the law of succession, and statistical inference, 1927

    Examples:
      >>> wilson(0, 10).low, round(wilson(0, 10).high, 4)
      (0.0, 0.2775)
    """
    share = hits / items
    scale = 1 + _Z**2 / items
    middle = share + _Z**2 / (2 * items)
    half = _Z * math.sqrt(share * (1 - share) / items + _Z**2 / (4 * items**2))
    low = 0.0 if hits == 0 else (middle - half) / scale
    high = 1.0 if hits == items else (middle + half) / scale
    return Estimate(share, low, high)


def estimate_of(statistic: Statistic, *, seed: int = 0) -> Estimate:
    """A score and its 95 % percentile-bootstrap interval over items.

    Args:
      statistic: of at least one item.
      seed: of the resampling.

    References:
      Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3
    """
    return interval_of(
        point(statistic), resampled(statistic, seed=seed), items=len(statistic.counts)
    )


def interval_of(score: float, resamples: Float[np.ndarray, " r"], items: int) -> Estimate:
    """A score with the middle 95 % of its resamples.

    If all of them are 0 or all are 1, the bound on the other side is Wilson's for a share of 0 or
    1 of as many items: that none was right does not say that none ever will be.
    """
    low, high = (float(bound) for bound in np.quantile(resamples, [0.025, 0.975]))
    if low == high == 0:
        high = wilson(0, items).high
    if low == high == 1:
        low = wilson(items, items).low
    return Estimate(score, low, high)


def difference_estimate(groups: Sequence[Values], *, seed: int = 0) -> Estimate:
    """The mean over groups of each group's mean difference, with its 95 % bootstrap interval.

    A difference is no share, so no bound is Wilson's: where no item differs, no resample does.

    Args:
      groups: one number per item, by task; each task is resampled by itself.
      seed: of the resampling.

    Examples:
      >>> difference_estimate([[0.0] * 50])
      Estimate(score=0.0, low=0.0, high=0.0)
    """
    statistics = [mean(group) for group in groups]
    draws = [resampled(each, seed=seed + i) for i, each in enumerate(statistics)]
    low, high = (float(end) for end in np.quantile(np.mean(draws, axis=0), [0.025, 0.975]))
    return Estimate(float(np.mean([point(each) for each in statistics])), low, high)


def point(statistic: Statistic) -> float:
    """The score itself."""
    return float(statistic.score(statistic.counts.sum(axis=0)))


def resampled(statistic: Statistic, *, seed: int) -> Float[np.ndarray, " r"]:
    """The score of as many items drawn with replacement, again and again.

    A resample is how often each item is drawn; the sums over it are one product of matrices.
    """
    random = np.random.default_rng(seed)
    items = len(statistic.counts)
    scores = []
    for _ in range(0, _RESAMPLES, _AT_ONCE):
        draws = random.integers(items, size=(_AT_ONCE, items))
        draws += items * np.arange(_AT_ONCE)[:, None]  # each resample has numbers of its own
        times = np.bincount(draws.ravel(), minlength=_AT_ONCE * items).reshape(_AT_ONCE, items)
        scores.append(statistic.score(times.astype(np.float64) @ statistic.counts))
    return np.concatenate(scores)


def paired_p_value(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> float:
    """The two-sided p-value that two models score alike on the same items.

    McNemar's exact test for outcomes 0 or 1. For others a permutation test: if nothing changed,
    the sign of each item's difference is a fair coin. All signs are tried where items are few, so
    that no p-value is smaller than they can give; of more items, 2,000 draws.

    Args:
      before: one model's outcome per item.
      after: the other's, in the same order.
      seed: of the permutations.

    Raises:
      ValueError: if the lengths differ.

    Examples:
      >>> paired_p_value([0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1])
      0.0625
      >>> paired_p_value([0.5] * 8, [0.5] * 8)
      1.0
    """
    if all(outcome in (0, 1) for outcome in (*before, *after)):
        return mcnemar_exact(before, after)
    _check_pairs(before, after)
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    change = change[change != 0]
    if not change.size:
        return 1.0
    least = abs(change.sum()) * (1 - 1e-12)
    if 2**change.size <= _RESAMPLES:
        signs = np.array(list(itertools.product([-1.0, 1.0], repeat=change.size)))
        return float((abs(signs @ change) >= least).mean())
    random = np.random.default_rng(seed)
    sums = [
        abs(random.choice([-1.0, 1.0], size=(_AT_ONCE, change.size)) @ change)
        for _ in range(0, _RESAMPLES, _AT_ONCE)
    ]
    as_large = np.concatenate(sums) >= least
    return float((as_large.sum() + 1) / (as_large.size + 1))


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
    _check_pairs(before, after)
    if bad := {x for x in (*before, *after) if x not in (0, 1)}:
        raise ValueError(f"expected outcomes 0 or 1, got {sorted(bad)[:3]}")
    gained = sum(a > b for b, a in zip(before, after, strict=True))
    lost = sum(a < b for b, a in zip(before, after, strict=True))
    discordant = gained + lost
    tail: int = sum(math.comb(discordant, k) for k in range(min(gained, lost) + 1))
    return min(1.0, tail / (1 << discordant) * 2)


def _check_pairs(before: Sequence[float], after: Sequence[float]) -> None:
    """Refuses outcomes of other items."""
    if len(before) != len(after):
        raise ValueError(
            f"expected outcomes of the same items, got {len(before)} and {len(after)} of them; "
            "score both models on the same task file"
        )


def _ratio(sums: Float[np.ndarray, "*r 2"]) -> Float[np.ndarray, "*r"]:
    """The first sum over the second; 0 where there is nothing to divide by."""
    above, below = sums[..., 0], sums[..., 1]
    quotient: np.ndarray = np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
    return quotient
