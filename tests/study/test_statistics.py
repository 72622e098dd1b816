"""Differences and intervals against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from medcare_jax.study.statistics import QUANTITIES, item_interval, quantity, rows, seed_interval
from tests.study.results import five_seeds, result


def test_quantities_of_a_result():
    found = result("none", 0, known=[1, 0, 0, 0], written=[1, 1, 0, 0], nll=2.0)
    assert {name: quantity(found, name) for name in QUANTITIES} == {
        "knowledge": 0.25,
        "kept": -0.75,
        "knowledge_nll": 1.5,
        "alignment": 0.5,
        "alignment_nll": 0.25,
    }


def test_the_seed_interval_is_students():
    values = [0.1, 0.4, 0.2, 0.3, 0.35]
    found = seed_interval(values)
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(found, [np.mean(values), low, high])
    assert seed_interval([0.3]) == (0.3, -np.inf, np.inf)


def test_pairing_takes_out_what_seeds_have_in_common():
    table = {row.cell: row for row in rows(five_seeds(), "none")}
    assert list(table) == ["none", "projection"]
    assert table["none"].paired == {}
    kept = table["projection"].paired["kept"]
    assert kept.score == pytest.approx(0.25)
    assert kept.high - kept.low == pytest.approx(0.0, abs=1e-12)  # the same in every seed,
    alone = table["projection"].means["kept"]
    assert alone.high - alone.low > 0.1  # though the seeds differ
    assert table["projection"].paired["alignment"].score == 0.0
    assert (table["none"].seeds, table["none"].leak) == ((0, 1, 2, 3, 4), 1e-7)


def test_only_seeds_that_both_have_are_paired():
    results = [each for each in five_seeds() if (each["cell"], each["seed"]) != ("projection", 4)]
    table = {row.cell: row for row in rows(results, "none")}
    assert len(table["projection"].seeds) == 4
    assert table["projection"].paired["kept"].score == pytest.approx(0.25)


def test_one_seed_is_compared_over_its_items():
    pair = [r for r in five_seeds() if r["seed"] == 0]
    row = rows(pair, "none")[1]
    assert row.paired["kept"] == item_interval(pair[1], pair[0], "kept")
    assert row.paired["kept"].score == pytest.approx(0.25)
    assert row.paired["kept"].low < 0.25 < row.paired["kept"].high
    assert row.paired["knowledge_nll"].low == -np.inf
    with pytest.raises(ValueError, match="no outcomes per item"):
        item_interval(pair[1], pair[0], "knowledge_nll")


def test_a_cell_without_a_basis_has_no_leak():
    found = [result("one LoRA", 0, known=[1, 0], written=[1], leak=None)]
    (row,) = rows(found, "none")
    assert (row.leak, row.width, row.paired) == (None, None, {})
