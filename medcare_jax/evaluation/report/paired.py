"""Two or more evaluations of the same items: which model is better, and how sure one can be."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from medcare_jax.evaluation.judging.rubric import CRITERIA, JUDGE_METRIC
from medcare_jax.evaluation.metrics import Estimate, difference_estimate, paired_p_value
from medcare_jax.evaluation.report.charts import Band, Dot, interval_chart
from medcare_jax.evaluation.report.comparison import SIGNIFICANCE, Verdict
from medcare_jax.evaluation.report.elements import document, legend, section, text
from medcare_jax.evaluation.report.evaluation_tables import estimate_of, in_table_order
from medcare_jax.evaluation.report.tables import (
    Cell,
    Row,
    Table,
    escape,
    html_table,
    markdown_table,
)
from medcare_jax.evaluation.report.wording import (
    NONE,
    difference_text,
    interval_text,
    metric_name,
    p_value,
    score_text,
    share_of_scale,
)
from medcare_jax.evaluation.results import (
    MetricScore,
    Results,
    TaskResult,
    read_results,
    scored_items,
)
from medcare_jax.evaluation.tasks import GENERATE, TASKS
from medcare_jax.files import write_text

_NOTE = (
    "Differences are to the first model, with 95 % bootstrap intervals over the same items. p: "
    "McNemar's exact test where answers are right or wrong, else a permutation of signs; not "
    f"corrected for the number of comparisons. Better or worse: p below {SIGNIFICANCE:g}."
)


class Difference(NamedTuple):
    """How a later model's score differs from the first model's on the same items.

    Attributes:
      delta: Later minus first, in the unit of the metric.
      interval: Its 95 % bootstrap interval; None for scores that are no mean over items.
      p: Of `metrics.paired_p_value`; None for the same scores.
    """

    delta: float
    interval: Estimate | None
    p: float | None

    @property
    def verdict(self) -> Verdict:
        """Better or worse if chance alone would rarely do it, else unclear."""
        if self.p is None or self.p >= SIGNIFICANCE or not self.delta:
            return "unclear"
        return "better" if self.delta > 0 else "worse"


def compare_folders(folders: Sequence[Path], output: Path) -> tuple[Path, Path]:
    """Writes `comparison.md` and `comparison.html` on evaluations in folders, the first one first.

    Raises:
      ValueError: Fewer than two folders, or no task that all have scored on the same items.
      FileNotFoundError: A folder without results.
    """
    if len(folders) < 2:
        raise ValueError(f"expected two or more folders to compare, got {len(folders)}")
    found: dict[str, Results] = {}
    for folder in folders:
        results = read_results(folder)
        if results is None:
            raise FileNotFoundError(f"{folder} has no results.json; evaluate a model into it first")
        found[str(folder)] = in_table_order(results)
    if len(found) < len(folders):
        raise ValueError("expected different folders to compare, got one of them twice")
    common, notes = _common(found)
    if not common:
        raise ValueError(
            f"no task was scored by all of {', '.join(found)} on the same items: "
            + ("; ".join(notes) or "they have no task in common")
        )
    table = _table(found, common)
    texts = {
        "comparison.md": _markdown(found, table, notes),
        "comparison.html": _page(found, common, table, notes),
    }
    for name, content in texts.items():
        write_text(output / name, content)
    return output / "comparison.md", output / "comparison.html"


def difference(first: MetricScore, later: MetricScore) -> Difference:
    """The paired difference of two scores of the same items.

    Raises:
      ValueError: Outcomes of different numbers of items.
    """
    delta = later["score"] - first["score"]
    before, after = first["outcomes"], later["outcomes"]
    if len(before) != len(after):
        raise ValueError(f"expected outcomes of the same items, got {len(before)} and {len(after)}")
    if not before:
        return Difference(delta, None, None)
    changes = [b - a for a, b in zip(before, after, strict=True)]
    return Difference(delta, difference_estimate([changes]), paired_p_value(before, after))


def _common(found: Mapping[str, Results]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """(task, protocol, metric) that all have on the same items, and why other tasks have none."""
    first, *others = found.values()
    common, notes = [], []
    for name, task in first["tasks"].items():
        if not all(name in results["tasks"] for results in others):
            notes.append(f"{task['title']} was not scored by all")
        elif not all(_has_same_items(first, results, name) for results in others):
            notes.append(f"{task['title']} was scored on different items")
        else:
            for protocol, metric in _scored_by_all(found, name):
                key = (name, protocol, metric)
                if problem := _why_not(found, key):
                    said = f"{task['title']}, {metric_name(metric)}, {protocol}"
                    notes.append(f"{said} was {problem}")
                else:
                    common.append(key)
    return common, notes


def _why_not(found: Mapping[str, Results], key: tuple[str, str, str]) -> str:
    """Why scores that all have do not compare; empty if they do."""
    name, _, metric = key
    if len({scored_items(score) for score in _scores(found, key)}) > 1:
        return "scored on different items"
    rules = {results["settings"].get("rules") for results in found.values()}
    if len(rules) > 1 and _depends_on_rules(key):
        return "read by different rules"
    judges = [results["settings"].get("judge", {}).get(name) for results in found.values()]
    if metric in (JUDGE_METRIC, *CRITERIA) and any(judge != judges[0] for judge in judges):
        return "marked by different judges or rubrics"
    return ""


def _depends_on_rules(key: tuple[str, str, str]) -> bool:
    """Whether the same answers score otherwise by other rules, as `grading` and `summaries` do."""
    name, protocol, metric = key
    if protocol != GENERATE or metric in (JUDGE_METRIC, *CRITERIA):
        return False
    family = TASKS[name].family if name in TASKS else ""
    return family in ("exam", "cblue") or metric == "macro_f1"


def _scored_by_all(found: Mapping[str, Results], name: str) -> list[tuple[str, str]]:
    """Protocols and metrics of a task that all have."""
    first, *others = (results["tasks"][name] for results in found.values())
    return [
        (protocol, metric)
        for protocol, result in first["protocols"].items()
        for metric in result["scores"]
        if all(_score(other, protocol, metric) for other in others)
    ]


def _has_same_items(first: Results, other: Results, name: str) -> bool:
    """Whether a task's files and counts agree."""
    files = [results["data"].get(name) for results in (first, other)]
    counts = [results["tasks"][name]["items"] for results in (first, other)]
    return files[0] == files[1] and counts[0] == counts[1]


def _score(task: TaskResult, protocol: str, metric: str) -> MetricScore | None:
    """A score, if there is one."""
    result = task["protocols"].get(protocol)
    return result["scores"].get(metric) if result else None


def _scores(found: Mapping[str, Results], key: tuple[str, str, str]) -> list[MetricScore]:
    """The scores of all models, which all have it."""
    name, protocol, metric = key
    return [r["tasks"][name]["protocols"][protocol]["scores"][metric] for r in found.values()]


def _table(found: Mapping[str, Results], common: Sequence[tuple[str, str, str]]) -> Table:
    """One row per task, protocol and metric."""
    rows = []
    for key in common:
        name, protocol, metric = key
        task = next(iter(found.values()))["tasks"][name]
        scores = _scores(found, key)
        cells = [
            Cell(score_text(metric, s["score"]), interval_text(metric, estimate_of(s)))
            for s in scores
        ]
        changes = [_change(metric, difference(scores[0], later)) for later in scores[1:]]
        rows.append(
            Row(
                Cell(task["title"], f"{metric_name(metric)}, {protocol}, {task['items']:,} items"),
                [*cells, *changes],
                "main" if (metric, protocol) == (task["metric"], task["protocol"]) else "",
            )
        )
    letters = [_letter(place) for place in range(len(found))]
    columns = ["task", *letters, *(f"{later} − {letters[0]}" for later in letters[1:])]
    return Table(columns, rows, _NOTE)


def _change(metric: str, found: Difference) -> Cell:
    """A difference with interval and p-value."""
    if found.interval is None:
        return Cell(difference_text(metric, found.delta), NONE)
    ends = [difference_text(metric, end) for end in (found.interval.low, found.interval.high)]
    note = f"{ends[0]} to {ends[1]}"
    if found.p is not None:
        note += f", {p_value(found.p)}"
    return Cell(difference_text(metric, found.delta), note, found.verdict)


def _letter(place: int) -> str:
    """A short name for a model, so that columns stay narrow.

    Examples:
      >>> _letter(0), _letter(27)
      ('A', 'B2')
    """
    letter = chr(ord("A") + place % 26)
    return letter if place < 26 else f"{letter}{place // 26 + 1}"


def _models(found: Mapping[str, Results]) -> list[tuple[str, str]]:
    """Letters, and what they stand for."""
    return [
        (_letter(place), f"{results['model']['name']} ({folder})")
        for place, (folder, results) in enumerate(found.items())
    ]


def _page(
    found: Mapping[str, Results],
    common: Sequence[tuple[str, str, str]],
    table: Table,
    notes: Sequence[str],
) -> str:
    """The HTML page."""
    names = _models(found)
    keys = [(f"model-{place % 4 + 1}", f"{a}: {b}") for place, (a, b) in enumerate(names)]
    chart = interval_chart(_bands(found, common), title="Task scores")
    left = "".join(f"<li>{text(note)}</li>" for note in notes)
    body = (
        '<header><p class="kicker">MedCare evaluation</p><h1>Comparison of models</h1></header>\n'
        + section("Scores at a glance", f'{legend(keys)}<figure class="wide">{chart}</figure>')
        + section("Paired differences", html_table(table))
        + section("Not compared", f"<ul>{left}</ul>" if left else "")
    )
    return document("Comparison of models", body)


def _bands(found: Mapping[str, Results], common: Sequence[tuple[str, str, str]]) -> list[Band]:
    """Headline scores; of a task without a headline in common, nothing."""
    bands = []
    for key in common:
        name, protocol, metric = key
        task = next(iter(found.values()))["tasks"][name]
        if (metric, protocol) != (task["metric"], task["protocol"]):
            continue
        dots = []
        for place, score in enumerate(_scores(found, key)):
            ends = estimate_of(score)
            said = f"{_letter(place)}: {score_text(metric, ends.score)}"
            places = [share_of_scale(metric, value) for value in ends]
            dots.append(Dot(f"model-{place % 4 + 1}", said, *places))
        bands.append(Band(task["title"], metric_name(metric), dots))
    return bands


def _markdown(found: Mapping[str, Results], table: Table, notes: Sequence[str]) -> str:
    """The same as Markdown."""
    parts = ["# Comparison of models"]
    parts.append("\n".join(f"- {letter}: {escape(name)}" for letter, name in _models(found)))
    parts.append(markdown_table(table))
    if notes:
        parts += ["## Not compared", "\n".join(f"- {escape(note)}" for note in notes)]
    return "\n\n".join(parts) + "\n"
