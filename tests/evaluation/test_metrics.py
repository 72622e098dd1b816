"""Intervals and tests against their definitions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcare_jax.evaluation.metrics import estimate, mcnemar_exact

OUTCOMES = st.lists(st.integers(0, 1), min_size=1, max_size=60)


@given(OUTCOMES)
def test_the_interval_holds_the_score_and_stays_in_bounds(outcomes):
    score, low, high = estimate(outcomes)
    assert score == pytest.approx(sum(outcomes) / len(outcomes))
    assert 0 <= low <= score <= high <= 1


def test_the_interval_is_the_binomial_one():
    """For 0/1 outcomes a bootstrap mean is binomial, so its quantiles are known."""
    outcomes = [1] * 60 + [0] * 140
    draws = np.random.default_rng(5).binomial(200, 0.3, 200_000) / 200
    _, low, high = estimate(outcomes)
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.008)


def test_an_interval_is_of_its_seed():
    outcomes = [0.1, 0.7, 0.4, 1.0, 0.2, 0.9, 0.3]
    assert estimate(outcomes, seed=3) == estimate(outcomes, seed=3)
    assert estimate(outcomes, seed=3) != estimate(outcomes, seed=4)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        _, low, high = estimate((random.random(80) < 0.4).astype(float), seed=trial)
        covered += low <= 0.4 <= high
    assert 0.90 < covered / 300 < 0.98


def test_no_outcome_is_refused():
    with pytest.raises(ValueError, match="got none"):
        estimate([])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 2), (0, 8), (7, 1)])
def test_mcnemar_counts_all_ways_a_coin_may_fall(gained, lost):
    """Oracle: every outcome of the discordant items, those at least as lopsided counted."""
    before = [0] * gained + [1] * lost + [1, 0, 1]
    after = [1] * gained + [0] * lost + [1, 0, 1]
    n, lopsided = gained + lost, abs(gained - lost)
    falls = [abs(2 * sum(coins) - n) >= lopsided for coins in itertools.product((0, 1), repeat=n)]
    assert mcnemar_exact(before, after) == pytest.approx(sum(falls) / 2**n)


@given(st.data())
def test_mcnemar_is_symmetric_and_a_probability(data):
    before = data.draw(OUTCOMES)
    after = data.draw(st.lists(st.integers(0, 1), min_size=len(before), max_size=len(before)))
    p = mcnemar_exact(before, after)
    assert 0 < p <= 1
    assert p == mcnemar_exact(after, before)


def test_mcnemar_holds_for_thousands_of_items():
    p = mcnemar_exact([0] * 3000, [1] * 1600 + [0] * 1400)
    assert p == pytest.approx(2.0**-1599) or p == 0.0
    assert not math.isnan(p)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [([0, 1], [1], "2 and 1"), ([0, 0.5], [1, 1], "outcomes 0 or 1, got \\[0.5\\]")],
)
def test_unpaired_or_graded_outcomes_are_refused(before, after, message):
    with pytest.raises(ValueError, match=message):
        mcnemar_exact(before, after)
