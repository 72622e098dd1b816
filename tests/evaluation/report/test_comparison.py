"""Changes and their words; the words must turn when the numbers do."""

import pytest

from medcare_jax.evaluation.metrics import mcnemar_exact
from medcare_jax.evaluation.report.comparison import Change, compare, findings
from medcare_jax.evaluation.results import headline


def test_rows_hold_the_numbers_of_every_stage(report):
    rows = compare(report.scores)
    assert [(row.task, row.metric, row.is_headline) for row in rows] == [
        ("unseen", "accuracy", True),
        ("coding", "exact_match", True),
        ("coding", "valid_format", False),
    ]
    row = rows[1]
    assert [estimate.score for estimate in row.estimates.values()] == [0.0, 0.42, 0.82]
    assert list(row.changes) == [("base", "mka"), ("mka", "da"), ("base", "da")]
    assert row.changes["mka", "da"].delta == pytest.approx(0.4)
    mka, da = (
        headline(report.scores[stage]["tasks"]["coding"])["outcomes"] for stage in ("mka", "da")
    )
    assert row.changes["mka", "da"].p_value == mcnemar_exact(mka, da)


@pytest.mark.parametrize(
    ("delta", "p", "verdict"),
    [(0.2, 0.01, "better"), (-0.2, 0.01, "worse"), (0.2, 0.05, "unclear"), (0.0, 0.01, "unclear")],
)
def test_a_change_is_only_called_one_if_chance_rarely_makes_it(delta, p, verdict):
    assert Change(delta, p).verdict == verdict


def test_findings_say_what_fell_and_what_did_not_improve(report):
    said = [(verdict, text) for verdict, text in findings(compare(report.scores))]
    assert [verdict for verdict, _ in said] == ["better", "worse", "better", "better", "unclear"]
    texts = [text for _, text in said]
    assert texts[0] == "Knowledge through MKA: better on unseen (26.0% → 66.0%, p < 0.001)."
    assert texts[1].startswith("Knowledge through DA: worse on unseen (66.0% → 36.0%")
    assert texts[3].startswith("Alignment through DA: better on coding (42.0% → 82.0%")
    assert texts[4].startswith("Did not improve from base to after DA: unseen (26.0% → 36.0%")


def test_findings_turn_with_the_numbers(report):
    """The same words from the run told backwards would be a lie."""
    turned = {"base": report.scores["da"], "mka": report.scores["mka"], "da": report.scores["base"]}
    said = findings(compare(turned))
    assert "Alignment through MKA: worse on coding" in " ".join(text for _, text in said)
    assert said[-1].verdict == "worse"
    assert "coding (82.0% → 0.0%" in said[-1].text


def test_full_success_is_said_once(report):
    scores = {"base": report.scores["base"], "mka": report.scores["mka"]}
    said = findings(compare(scores))
    assert said[-1] == ("better", "Every task improved from base to after MKA.")


def untested(results, task):
    """Results in which a task's scores are no means, as micro-F1."""
    found = results["tasks"][task]["protocols"]["generate"]
    scores = {name: {**score, "outcomes": []} for name, score in found["scores"].items()}
    protocols = {"generate": {**found, "scores": scores}}
    tasks = results["tasks"] | {task: {**results["tasks"][task], "protocols": protocols}}
    return {**results, "tasks": tasks}


def test_what_no_test_covers_is_not_said_to_be_chance(report):
    """A micro-F1 from 0 to 42 % is neither within chance nor beyond it."""
    scores = {stage: untested(report.scores[stage], "coding") for stage in ("base", "mka")}
    said = findings(compare(scores))
    assert said[1:] == [
        (
            "untested",
            "Alignment through MKA: no test of the change on coding (0.0% → 42.0%, not paired).",
        ),
        ("better", "Every task that could be tested improved from base to after MKA."),
    ]
    both = {stage: untested(results, "unseen") for stage, results in scores.items()}
    assert {verdict for verdict, _ in findings(compare(both))} == {"untested"}


def test_one_stage_or_none_has_nothing_to_compare(report):
    rows = compare({"base": report.scores["base"]})
    assert rows[0].changes == {}
    assert findings(rows) == []
    assert compare({}) == compare({"base": {}}) == []


def test_stages_of_other_items_are_refused(report):
    tasks = report.scores["da"]["tasks"]
    other = {"tasks": {**tasks, "coding": {**tasks["coding"], "items": 49}}}
    with pytest.raises(ValueError, match="score all stages on the same files"):
        compare({**report.scores, "da": other})
    with pytest.raises(ValueError, match="got sft"):
        compare({"sft": report.scores["da"]})
