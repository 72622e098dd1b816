"""Intervals and tests against their definitions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcare_jax.evaluation.metrics import (
    estimate,
    estimate_of,
    mcnemar_exact,
    mean,
    paired_p_value,
    ratio,
    wilson,
)

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


def test_wilson_is_the_published_interval():
    """Newcombe, Statistics in Medicine 17, 1998, table I: 81 of 263 and 15 of 148."""
    assert wilson(81, 263)[1:] == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148)[1:] == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20)[1:] == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson(29, 29)[1:] == pytest.approx((0.8830, 1), abs=5e-5)


def test_a_bootstrap_draws_items_as_often_as_a_loop_would():
    values = [0.1, 0.7, 0.4, 1.0, 0.2, 0.9, 0.3]
    random = np.random.default_rng(1)
    means = np.mean(random.choice(values, size=(20_000, len(values))), axis=1)
    found = estimate_of(mean(values))
    assert found.score == pytest.approx(np.mean(values))
    assert found[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)


def test_a_score_without_exception_still_has_a_width():
    always = ratio([3.0] * 30, [3.0] * 30)
    assert estimate_of(always) == (1.0, wilson(30, 30).low, 1.0)
    assert estimate_of(mean([0.0] * 30)) == (0.0, 0.0, wilson(0, 30).high)


def test_a_paired_test_of_numbers_is_by_permutation():
    before = [0.1 * (i % 7) for i in range(12)]
    signs = itertools.product([-1, 1], repeat=12)
    change = np.array([0.02 * (i % 5) - 0.01 for i in range(12)])
    as_large = [abs(np.dot(sign, change)) >= abs(change.sum()) * (1 - 1e-12) for sign in signs]
    p = paired_p_value(before, np.array(before) + change)
    assert p == pytest.approx(np.mean(as_large), abs=0.03)
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_p_value([0.5, 0.2], [0.5])


def test_few_items_cannot_give_a_smaller_p_value_than_their_signs():
    assert paired_p_value([0.1] * 6, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]) == 2 / 64
