"""What stands in `results.json` as tables: as the paper lays them out, and protocol by protocol."""

import statistics
from collections.abc import Sequence

from medcare_jax.evaluation.metrics import Estimate, mcnemar_exact
from medcare_jax.evaluation.report.published import AVERAGE, COLUMNS, ROWS, SOURCE
from medcare_jax.evaluation.report.tables import Cell, Row, Table
from medcare_jax.evaluation.report.wording import (
    NONE,
    difference_text,
    interval_text,
    metric_name,
    p_value,
    percent,
    score_text,
)
from medcare_jax.evaluation.results import MetricScore, Results, TaskResult, headline
from medcare_jax.evaluation.tasks import GENERATE, KNOWLEDGE, TASKS

EXAM_METRIC = "accuracy"
CBLUE = "cblue"
INTERVALS = "Small print: 95 % intervals over items (shares: Wilson's, else the bootstrap's)."


def paper_table(results: Results) -> Table:
    """The exams of the paper's Table 1, its rows first; ours has an average if all eight are there.

    Without any of these exams the table has no rows.
    """
    found = [results["tasks"].get(name) for name in COLUMNS]
    scores = [headline(task) if task else None for task in found]
    if not any(scores):
        return Table([], [])
    quoted = [
        Row(Cell(name), [Cell(f"{value:.2f}") for value in values]) for name, values in ROWS.items()
    ]
    cells = [
        Cell(f"{100 * score['score']:.2f}", interval_text(EXAM_METRIC, estimate_of(score)))
        if score
        else Cell(NONE)
        for score in scores
    ]
    present = [100 * score["score"] for score in scores if score]
    average = (
        Cell(f"{statistics.fmean(present):.2f}")
        if len(present) == len(COLUMNS)
        else Cell(NONE, f"{len(present)} of {len(COLUMNS)}")
    )
    ours = Row(Cell(results["model"]["name"], _how(results)), [*cells, average], "ours")
    note = f"Accuracy in per cent. Rows above ours: {SOURCE}. {INTERVALS}"
    return Table(["model", *COLUMNS.values(), AVERAGE], [*quoted, ours], note)


def _how(results: Results) -> str:
    """That our row was scored here, and in what it is not the paper's way."""
    settings = results["settings"]
    tasks = [task for name, task in results["tasks"].items() if name in COLUMNS]
    others = dict.fromkeys(task["protocol"] for task in tasks if task["protocol"] != GENERATE)
    said = ["here", *(f"by {protocol}" for protocol in others)]
    if (rules := settings.get("rules", "reference")) != "reference":
        said.append(f"{rules} rules")
    if limit := settings.get("limit"):
        said.append(f"up to {limit:,} items of each")
    if most := settings.get("max_new_tokens"):
        said.append(f"answers up to {most:,} tokens")
    return ", ".join(said)


def exam_table(results: Results, language: str) -> Table:
    """The exams of a language that are not in the paper's table."""
    return _score_table(
        [
            task
            for name, task in results["tasks"].items()
            if _is_exam(task) and task["language"] == language and name not in COLUMNS
        ]
    )


def cblue_table(results: Results) -> Table:
    """CBLUE task by task, and their mean."""
    task = results["tasks"].get(CBLUE)
    score = headline(task) if task else None
    if task is None or score is None:
        return Table([], [])
    rows = [
        Row(Cell(name), [Cell(f"{part['items']:,}"), Cell(f"{100 * part['score']:.2f}")])
        for name, part in score["types"].items()
    ]
    mean = Cell(f"{100 * score['score']:.2f}", interval_text(task["metric"], estimate_of(score)))
    rows.append(Row(Cell("mean of the tasks"), [Cell(f"{task['items']:,}"), mean], "ours"))
    note = "Each task in its own metric, in per cent: F1 of extraction or classification, ROUGE-L."
    return Table(["CBLUE task", "items", "score"], rows, note)


def other_table(results: Results) -> Table:
    """Tasks that are neither exams nor CBLUE, with every metric."""
    others = [
        task for name, task in results["tasks"].items() if not _is_exam(task) and name != CBLUE
    ]
    return _score_table(others)


def protocol_table(results: Results) -> Table:
    """The same items asked in several ways, with the share that no rule could read."""
    tasks = [task for task in results["tasks"].values() if len(task["protocols"]) > 1]
    names = list(dict.fromkeys(name for task in tasks for name in task["protocols"]))
    rows = [
        Row(
            Cell(task["title"], f"{task['items']:,} items"),
            [*(_protocol_cell(task, name) for name in names), _disagreement(task, names)],
        )
        for task in tasks
    ]
    note = (
        "The same questions asked in several ways: ways of asking are known to differ by up to ten "
        "points. p: McNemar's exact test of the two on the same items. " + INTERVALS
    )
    return Table(["task", *names, "difference"], rows, note)


def type_table(results: Results) -> Table:
    """Headline scores by type of item, of tasks with several types."""
    rows = []
    for name, task in results["tasks"].items():
        score = headline(task)
        if score is None or len(score["types"]) < 2 or name == CBLUE:
            continue
        rows += [
            Row(
                Cell(task["title"], kind or "no type"),
                [Cell(f"{part['items']:,}"), Cell(score_text(task["metric"], part["score"]))],
            )
            for kind, part in score["types"].items()
        ]
    return Table(["task and type", "items", "score"], rows)


def in_table_order(results: Results) -> Results:
    """The same results with tasks in the order of the task table; a file has them by name."""
    places = {name: place for place, name in enumerate(TASKS)}
    names = sorted(results["tasks"], key=lambda name: places.get(name, len(places)))
    return {**results, "tasks": {name: results["tasks"][name] for name in names}}


def estimate_of(score: MetricScore) -> Estimate:
    """A score with its interval."""
    return Estimate(score["score"], score["low"], score["high"])


def left_out(results: Results) -> str:
    """Which items no model was asked, as one sentence; empty if there are none."""
    counts = [
        f"{task['title']}: {count:,} {reason}"
        for task in results["tasks"].values()
        for reason, count in task["left_out"].items()
        if count
    ]
    return f"Left out: {'; '.join(counts)}." if counts else ""


def _is_exam(task: TaskResult) -> bool:
    """Whether a task asks for facts, in questions with options."""
    return task["metric"] == EXAM_METRIC and task["kind"] == KNOWLEDGE


def _score_table(tasks: Sequence[TaskResult]) -> Table:
    """Every metric of the headline's protocol."""
    rows = []
    for task in tasks:
        scores = task["protocols"].get(task["protocol"], {"unreadable": None, "scores": {}})
        first = {task["metric"]: scores["scores"].get(task["metric"])}
        for metric, score in {**first, **scores["scores"]}.items():
            name = Cell(task["title"], metric_name(metric))
            cells = [Cell(f"{task['items']:,}"), _score_cell(metric, score)]
            rows.append(Row(name, cells, "main" if metric == task["metric"] else ""))
    return Table(["task", "items", "score"], rows, INTERVALS)


def _score_cell(metric: str, score: MetricScore | None) -> Cell:
    """A score over its interval."""
    if score is None:
        return Cell(NONE, "not scored yet")
    return Cell(score_text(metric, score["score"]), interval_text(metric, estimate_of(score)))


def _protocol_cell(task: TaskResult, name: str) -> Cell:
    """A protocol's headline score, and what it could not read."""
    protocol = task["protocols"].get(name)
    score = protocol["scores"].get(task["metric"]) if protocol else None
    if protocol is None or score is None:
        return Cell(NONE)
    cell = _score_cell(task["metric"], score)
    if protocol["unreadable"] is None:
        return cell
    return cell._replace(note=f"{cell.note}; {percent(protocol['unreadable'])} unreadable")


def _disagreement(task: TaskResult, names: Sequence[str]) -> Cell:
    """The second protocol minus the first, if both answered the same items."""
    metric = task["metric"]
    scores = [task["protocols"][name]["scores"].get(metric) for name in names[:2]
              if name in task["protocols"]]  # fmt: skip
    if len(scores) < 2 or scores[0] is None or scores[1] is None:
        return Cell(NONE)
    delta = difference_text(metric, scores[1]["score"] - scores[0]["score"])
    outcomes = [score["outcomes"] for score in scores if score]
    if len(outcomes[0]) != len(outcomes[1]) or {*outcomes[0], *outcomes[1]} - {0, 1}:
        return Cell(delta)
    return Cell(delta, p_value(mcnemar_exact(*outcomes)))
