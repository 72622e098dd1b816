"""Differences and intervals against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from medcare_jax.study.statistics import QUANTITIES, item_interval, quantity, rows, seed_interval
from tests.study.results import five_seeds, result, task


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
    known = {"none": [1] * 10 + [0] * 30, "span": [1] * 20 + [0] * 20}
    pair = [result(name, 0, known=known[name], written=[1]) for name in known]
    row = rows(pair, "none")[1]
    kept = row.paired["kept"]
    # Ten of 40 items differ, by 1: a mean of 40 draws that are 1 with probability 1/4.
    expected = [stats.binom.ppf(p, 40, 0.25) / 40 for p in (0.025, 0.975)]
    assert (kept.score, kept.low, kept.high) == pytest.approx((0.25, *expected), abs=1 / 40)
    assert row.paired["knowledge"] == kept  # from the same MKA
    assert row.paired["alignment"] == (0, 0, 0)
    turned = item_interval(pair[0], pair[1], "kept")
    assert (turned.low, turned.high) == pytest.approx((-kept.high, -kept.low))
    assert row.paired["knowledge_nll"].low == -np.inf
    with pytest.raises(ValueError, match="no outcomes per item"):
        item_interval(pair[1], pair[0], "knowledge_nll")


def test_what_is_kept_is_counted_from_a_cells_own_mka():
    """As "one LoRA" has it, which shares no MKA with the baseline."""
    baseline = result("none", 0, known=[1, 0, 0, 0], written=[1])
    own = result("one LoRA", 0, known=[1, 1, 0, 0], written=[1])
    own["mka"]["facts"] |= {"outcomes": [1, 0, 0, 0], "score": 0.25}
    assert (quantity(baseline, "kept"), quantity(own, "kept")) == (-0.75, 0.25)
    row = rows([baseline, own], "none")[1]
    assert row.paired["kept"].score == pytest.approx(1.0)
    assert row.paired["knowledge"].score == pytest.approx(0.25)


def test_tasks_of_one_seed_weigh_alike():
    pair = [result(name, 0, known=[0, 0], written=[1]) for name in ("none", "span")]
    for each, right in zip(pair, (0, 1), strict=True):
        each["after"]["more"] = task("knowledge-intensive", [right] * 8, 1.0)
        each["mka"]["more"] = task("knowledge-intensive", [0] * 8, 1.0)
    for name in ("knowledge", "kept"):
        found = rows(pair, "none")[1].paired[name]
        assert found == pytest.approx((0.5, 0.5, 0.5))
        assert found.score == quantity(pair[1], name) - quantity(pair[0], name)


def test_a_score_of_all_items_together_has_no_bounds_over_items():
    pair = [result(name, 0, known=[1], written=[1]) for name in ("none", "span")]
    for each in pair:
        each["after"]["notes"]["outcomes"] = []
    found = item_interval(pair[1], pair[0], "alignment")
    assert found == (0, -np.inf, np.inf)


def test_a_cell_without_a_basis_has_no_leak():
    found = [result("one LoRA", 0, known=[1, 0], written=[1], leak=None)]
    (row,) = rows(found, "none")
    assert (row.leak, row.width, row.paired) == (None, None, {})
