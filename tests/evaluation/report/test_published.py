"""The published rows are whole, and their averages are those of their columns."""

import statistics

import pytest

from medcare_jax.evaluation.report.published import COLUMNS, ROWS
from medcare_jax.evaluation.tasks import TASKS


@pytest.mark.parametrize("name", ROWS)
def test_the_last_figure_is_the_mean_of_the_others(name):
    *scores, average = ROWS[name]
    assert len(scores) == len(COLUMNS)
    # The paper averages unrounded scores, so its last digit may differ by one.
    assert statistics.fmean(scores) == pytest.approx(average, abs=0.0101)


def test_columns_are_known_tasks():
    assert set(COLUMNS) <= set(TASKS)
