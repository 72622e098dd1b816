"""The same tasks scored at several points of a run: what changed, and what did not, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from medcare_jax.evaluation.metrics import Estimate, paired_p_value
from medcare_jax.evaluation.report.wording import metric_name, p_value, score_text
from medcare_jax.evaluation.results import MetricScore, Results, TaskResult, scored_items
from medcare_jax.evaluation.tasks import ALIGNMENT, KNOWLEDGE, TASKS

STAGES: dict[str, str] = {"base": "base", "mka": "after MKA", "da": "after DA"}
"""The points of a run at which tasks are scored, in order, and how a reader is told of them."""

SIGNIFICANCE = 0.05

_BRIEF = {"base": "base", "mka": "MKA", "da": "DA"}

Verdict = Literal["better", "worse", "unclear", "untested"]


class Finding(NamedTuple):
    """A sentence about the numbers, and whether it is good news."""

    verdict: Verdict
    text: str


class Change(NamedTuple):
    """How a score moved between two points of a run.

    Attributes:
      delta: later minus earlier score, in the unit of the metric.
      p_value: of `metrics.paired_p_value` on the items that both answered; None where the score is
        of all items together and has no outcome per item.
    """

    delta: float
    p_value: float | None

    @property
    def verdict(self) -> Verdict:
        """Better or worse if chance alone would rarely do it, else unclear; untested without p."""
        if self.p_value is None:
            return "untested"
        if self.p_value >= SIGNIFICANCE or not self.delta:
            return "unclear"
        return "better" if self.delta > 0 else "worse"


@dataclass(frozen=True)
class Row:
    """One metric of one task at every point of a run.

    Attributes:
      task: the task's name.
      kind: knowledge-intensive or alignment-required.
      metric: what the numbers are.
      label: the same in words; with the protocol, where a task was asked in several ways.
      is_headline: whether it is the task's main metric.
      items: how many items were scored.
      estimates: score and interval by stage.
      changes: by pair of stages (earlier, later).
    """

    task: str
    kind: str
    metric: str
    label: str
    is_headline: bool
    items: int
    estimates: Mapping[str, Estimate]
    changes: Mapping[tuple[str, str], Change]


def compare(scores: Mapping[str, Results]) -> list[Row]:
    """One row per task, protocol and metric, knowledge-intensive tasks first.

    A metric that not all stages have, such as marks where a judge saw one of them, has no row.

    Args:
      scores: results by stage, keys among those of `STAGES`; stages that a run has not reached
        are absent.

    Raises:
      ValueError: if a stage is unknown, or stages scored other tasks or other numbers of items.
    """
    if unknown := set(scores) - set(STAGES):
        raise ValueError(f"expected stages among {', '.join(STAGES)}, got {', '.join(unknown)}")
    stages = [stage for stage in STAGES if scores.get(stage)]
    if not stages:
        return []
    first = scores[stages[0]]["tasks"]
    for stage in stages[1:]:
        _check_same_items(scores[stages[0]], scores[stage], stage)
    rows = [
        _row(task, protocol, metric, {stage: scores[stage]["tasks"][task] for stage in stages})
        for task in sorted(first, key=_place)
        for protocol in first[task]["protocols"]
        for metric in _ranked([scores[stage]["tasks"][task] for stage in stages], protocol)
    ]
    return sorted(rows, key=lambda row: row.kind != KNOWLEDGE)


def findings(rows: Sequence[Row]) -> list[Finding]:
    """What the numbers say, as sentences; what did not improve is said as plainly as the rest.

    Args:
      rows: from `compare`.

    Returns:
      Findings on headline metrics, in the order in which a run makes them; none without rows.
    """
    heads = [row for row in rows if row.is_headline]
    knowledge = [row for row in heads if row.kind == KNOWLEDGE]
    alignment = [row for row in heads if row.kind == ALIGNMENT]
    return [
        *_about(knowledge, "base", "mka", "Knowledge through MKA"),
        *_about(knowledge, "mka", "da", "Knowledge through DA"),
        *_about(alignment, "base", "mka", "Alignment through MKA"),
        *_about(alignment, "mka", "da", "Alignment through DA"),
        *_about_the_whole(heads),
    ]


def span_title(before: str, after: str) -> str:
    """A pair of stages as the head of a column.

    Examples:
      >>> span_title("mka", "da")
      'MKA → DA'
    """
    return f"{_BRIEF[before]} → {_BRIEF[after]}"


def _check_same_items(first: Results, other: Results, stage: str) -> None:
    """Paired numbers need the same items."""
    counts = [
        {task: result["items"] for task, result in results["tasks"].items()}
        for results in (first, other)
    ]
    if counts[0] != counts[1]:
        raise ValueError(
            f"expected the items of every stage to be the same, got {counts[0]} and, "
            f"{STAGES[stage]}, {counts[1]}; score all stages on the same files"
        )


def _place(task: str) -> int:
    """Where the task table has a task; behind it what it does not have."""
    return list(TASKS).index(task) if task in TASKS else len(TASKS)


def _ranked(results: Sequence[TaskResult], protocol: str) -> list[str]:
    """The metrics that all have: the headline's first, the others by name."""
    asked = [result["protocols"].get(protocol) for result in results]
    metrics = set[str].intersection(*({*one["scores"]} if one else set() for one in asked))
    return sorted(metrics, key=lambda metric: (metric != results[0]["metric"], metric))


def _row(task: str, protocol: str, metric: str, results: Mapping[str, TaskResult]) -> Row:
    """One metric of one task."""
    stages = list(results)
    summaries = {stage: results[stage]["protocols"][protocol]["scores"][metric] for stage in stages}
    estimates = {
        stage: Estimate(summary["score"], summary["low"], summary["high"])
        for stage, summary in summaries.items()
    }
    changes = {
        (a, b): Change(
            estimates[b].score - estimates[a].score,
            _p_value(summaries[a], summaries[b]),
        )
        for a, b in _pairs(stages)
    }
    head = results[stages[0]]
    is_headline = (protocol, metric) == (head["protocol"], head["metric"])
    label = metric_name(metric) + (f" ({protocol})" if len(head["protocols"]) > 1 else "")
    return Row(task, head["kind"], metric, label, is_headline, head["items"], estimates, changes)


def _p_value(before: MetricScore, after: MetricScore) -> float | None:
    """Of the paired test, where there is an outcome per item, of the same items."""
    if not before["outcomes"] or scored_items(before) != scored_items(after):
        return None
    return paired_p_value(before["outcomes"], after["outcomes"])


_WORDS: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "unclear": "no change beyond chance",
    "untested": "no test of the change",
}


def _pairs(stages: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbouring stages in order, then the first and the last of three."""
    return [
        *zip(stages, stages[1:], strict=False),
        *([(stages[0], stages[-1])] * (len(stages) > 2)),
    ]


def _about(rows: Sequence[Row], before: str, after: str, subject: str) -> list[Finding]:
    """One sentence per verdict on the tasks of a kind between two stages."""
    moved = [row for row in rows if (before, after) in row.changes]
    said = []
    for verdict, words in _WORDS.items():
        mine = [row for row in moved if row.changes[before, after].verdict == verdict]
        if mine:
            listed = "; ".join(_moved(row, before, after) for row in mine)
            said.append(Finding(verdict, f"{subject}: {words} on {listed}."))
    return said


def _about_the_whole(rows: Sequence[Row]) -> list[Finding]:
    """Which tasks a whole run, or as much of it as there is, did not improve, as far as tested."""
    scored = [stage for stage in STAGES if rows and stage in rows[0].estimates]
    if len(scored) < 2:
        return []
    before, after = scored[0], scored[-1]
    span = f"from {STAGES[before]} to {STAGES[after]}"
    tested = [row for row in rows if row.changes[before, after].verdict != "untested"]
    if not tested:
        return []
    failed = [row for row in tested if row.changes[before, after].verdict != "better"]
    if not failed:
        which = "Every task" if len(tested) == len(rows) else "Every task that could be tested"
        return [Finding("better", f"{which} improved {span}.")]
    is_worse = any(row.changes[before, after].verdict == "worse" for row in failed)
    listed = "; ".join(_moved(row, before, after) for row in failed)
    return [Finding("worse" if is_worse else "unclear", f"Did not improve {span}: {listed}.")]


def _moved(row: Row, before: str, after: str) -> str:
    """A task with both scores and the p-value of their difference."""
    old, new = (score_text(row.metric, row.estimates[stage].score) for stage in (before, after))
    return f"{row.task} ({old} → {new}, {p_value(row.changes[before, after].p_value)})"
