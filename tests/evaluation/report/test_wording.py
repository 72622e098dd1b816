"""Units follow the metric, signs are said, and nothing is rounded to a false zero."""

import pytest

from medcare_jax.evaluation.judging.rubric import CRITERIA
from medcare_jax.evaluation.metrics import Estimate
from medcare_jax.evaluation.report import wording


@pytest.mark.parametrize("metric", ["judge", *CRITERIA])
def test_marks_are_marks_and_no_shares(metric):
    assert wording.score_text(metric, 4.126) == "4.13"
    assert wording.interval_text(metric, Estimate(4, 3.5, 4.25)) == "3.50 to 4.25"
    assert wording.difference_text(metric, -0.254) == "−0.25"
    assert [wording.share_of_scale(metric, mark) for mark in (1, 3, 5)] == [0, 0.5, 1]


def test_shares_are_per_cent_and_points():
    assert wording.score_text("accuracy", 0.12345) == "12.3%"
    assert wording.interval_text("accuracy", Estimate(0.5, 0.25, 0.75)) == "25.0 to 75.0"
    assert wording.difference_text("accuracy", 0.0004) == "±0.0"
    assert wording.share_of_scale("accuracy", 0.5) == 0.5
