"""The page read back: each number is the input's, nothing is loaded, any part may be missing."""

import dataclasses
import statistics

import pytest

from medcare_jax.evaluation.report.comparison import compare
from medcare_jax.evaluation.report.content import RunReport, StageCurve
from medcare_jax.evaluation.report.run_page import html_page, stage_facts
from medcare_jax.evaluation.results import headline
from tests.evaluation.report.reading import Reader, read_page


def read(report: RunReport) -> Reader:
    return read_page(html_page(report))


def percents(text):
    return [float(part.rstrip("%")) / 100 for part in text.split(" to ")]


def test_every_score_is_the_inputs(report):
    rows = {tuple(row[0]): row for row in read(report).rows if len(row) == 8}
    for row in compare(report.scores):
        shown = rows[row.task, row.metric.replace("_", " ")]
        assert shown[1] == [str(row.items)]
        for (score, interval), estimate in zip(shown[2:5], row.estimates.values(), strict=True):
            assert percents(score) == pytest.approx([estimate.score], abs=6e-4)
            ends = [float(end) / 100 for end in interval.split(" to ")]
            assert ends == pytest.approx([estimate.low, estimate.high], abs=6e-4)
        for (delta, p), change in zip(shown[5:], row.changes.values(), strict=True):
            value = float(delta.replace("−", "-").replace("±", "")) / 100
            assert value == pytest.approx(change.delta, abs=6e-4)
            if change.p_value < 0.001:
                assert p == "p < 0.001"
            else:
                assert float(p.removeprefix("p = ")) == pytest.approx(change.p_value, abs=6e-4)


def test_scores_by_type_are_the_inputs(report):
    rows = {tuple(row[0]): row for row in read(report).rows if len(row) == 5}
    for task in ("unseen", "coding"):
        for kind in ("chapter", "title"):
            entries = [
                headline(report.scores[stage]["tasks"][task])["types"][kind]
                for stage in ("base", "mka", "da")
            ]
            shown = rows[task, kind]
            assert shown[1] == [str(entries[0]["items"])]
            for (cell,), entry in zip(shown[2:], entries, strict=True):
                assert percents(cell) == pytest.approx([entry["score"]], abs=6e-4)


def test_every_fact_is_the_inputs(report):
    terms = [tuple(pair) for pair in read(report).terms]
    for pair in [
        ("Base model", "some/base"),
        ("Exported model", "out/export"),
        ("overlap.found", "0"),
        ("seed", "7"),
        ("constraint.kind", "projection"),
        ("base", "ab" * 32),
        ("jax", "0.10.2"),
    ]:
        assert pair in terms
    for stage in report.stages:
        for pair in stage_facts(stage):
            assert pair in terms


def test_facts_of_a_stage():
    losses = tuple(float(i) for i in range(20, 0, -1))
    rates, speeds = tuple(i / 1e5 for i in range(20)), tuple(float(i) for i in range(400, 420))
    leaks = (3e-8,) * 19 + (2e-6,)
    stage = StageCurve("DA", tuple(range(1, 21)), losses, rates, speeds, leaks, leak_limit=1e-6)
    facts = dict(stage_facts(stage))
    assert facts["steps"] == "20"
    assert facts["loss, first step"] == "20.0000"
    assert float(facts["loss, last tenth"]) == statistics.fmean([2.0, 1.0])
    assert float(facts["peak learning rate"]) == 0.00019
    assert facts["tokens/s, median"] == "410"
    assert float(facts["largest drift"]) == 2e-6
    assert facts["drift limit 1e-06"] == "BROKEN"
    calm = dataclasses.replace(stage, leak=(3e-8,) * 20)
    assert dict(stage_facts(calm))["drift limit 1e-06"] == "holds"
    free = dict(stage_facts(dataclasses.replace(stage, leak_limit=None)))
    assert "drift limit 1e-06" not in free  # without a projection nothing was promised
    assert float(free["largest drift"]) == 2e-6


def test_what_was_left_out_is_said(report):
    assert "Left out of every stage: unseen: 3 longer than the context." in html_page(report)


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": {}},
        {"scores": {"base": {}}},
        {"stages": ()},
        {"data": {}, "settings": {}, "digests": {}, "versions": {}, "export": ""},
        {"stages": (StageCurve("MKA", (), (), (), ()),)},
        {"stages": (StageCurve("MKA", (1,), (2.0,), (0.0,), (9.0,), (0.0,)),)},
    ],
)
def test_any_part_may_be_missing(report, changes):
    read(dataclasses.replace(report, **changes))


def test_text_cannot_become_markup(report):
    evil = '"><script>alert(1)</script>'
    scores = {
        stage: {
            **results,
            "tasks": {evil if t == "coding" else t: r for t, r in results["tasks"].items()},
        }
        for stage, results in report.scores.items()
    }
    stages = tuple(dataclasses.replace(stage, name=evil) for stage in report.stages)
    page = html_page(
        dataclasses.replace(
            report, title=evil, base=evil, scores=scores, stages=stages, settings={evil: evil}
        )
    )
    assert "<script>alert" not in page
    Reader(page)


def test_training_files_stand_in_a_table(report):
    page = html_page(report)
    row = page[page.index("a|b.json") :].partition("</tr>")[0]
    assert "12,345" in row
    assert "MKA" in row
