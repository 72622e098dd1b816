"""The report of one evaluation: `report.md` for a terminal, `report.html` for a reader."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from medcare_jax.evaluation.report.answers_browser import SCRIPT, browser
from medcare_jax.evaluation.report.charts import Band, Dot, interval_chart
from medcare_jax.evaluation.report.content import flat_items
from medcare_jax.evaluation.report.elements import (
    document,
    facts,
    folded,
    legend,
    section,
    text,
    tiles,
)
from medcare_jax.evaluation.report.evaluation_tables import (
    cblue_table,
    estimate_of,
    exam_table,
    in_table_order,
    left_out,
    other_table,
    paper_table,
    protocol_table,
    type_table,
)
from medcare_jax.evaluation.report.tables import Table, code, escape, html_table, markdown_table
from medcare_jax.evaluation.report.wording import (
    interval_text,
    metric_name,
    score_text,
    share_of_scale,
)
from medcare_jax.evaluation.results import (
    PAGE_FILE,
    SAMPLES_FILE,
    Results,
    Sample,
    TaskResult,
    read_results,
    read_samples,
)
from medcare_jax.files import PRIVATE, write_text

MOST_SAMPLES = 20_000
_CUT = "Only the first {:,} answers are here, in the order of the tasks; all stand in {}."
_PARTIAL = "Partial: something that was asked for is not there yet, so these numbers may change."


def write_evaluation_report(folder: Path) -> tuple[Path, Path]:
    """Writes `report.md` and `report.html` from the two files of an evaluation.

    Samples, if there are any, can be looked through in the HTML, up to `MOST_SAMPLES` of them.

    Raises:
      FileNotFoundError: No results in the folder.
      ResultsError: Files of another kind.
    """
    results = read_results(folder)
    if results is None:
        raise FileNotFoundError(f"{folder} has no results.json; evaluate a model into it first")
    samples: Iterable[Sample] = ()
    if has_samples := (folder / SAMPLES_FILE).is_file():
        samples = read_samples(folder / SAMPLES_FILE)
    results = in_table_order(results)
    paths = folder / "report.md", folder / PAGE_FILE
    write_text(paths[0], markdown(results))
    shown = page(results, samples)
    if has_samples:  # as private as the samples themselves
        write_text(paths[1], shown, mode=PRIVATE)
    else:
        write_text(paths[1], shown)
    return paths


def page(results: Results, samples: Iterable[Sample] = ()) -> str:
    """The HTML page as text, with the first `MOST_SAMPLES` samples."""
    some = list(itertools.islice(samples, MOST_SAMPLES + 1))
    answers = browser(results, some[:MOST_SAMPLES])
    if len(some) > MOST_SAMPLES:  # else a search that finds nothing would seem to be of all
        answers = f"<p>{text(_CUT.format(MOST_SAMPLES, SAMPLES_FILE))}</p>{answers}"
    parts = [_header(results), section("Scores at a glance", _chart(results))]
    parts += [section(title, html_table(table)) for title, table in _tables(results)]
    omitted = left_out(results)
    parts += [
        section("Answers", answers),
        section("Left out", f"<p>{text(omitted)}</p>" if omitted else ""),
        section("By type of question", folded("Show", html_table(type_table(results)))),
        section("How it was made", _provenance(results)),
    ]
    title = f"Evaluation of {results['model']['name']}"
    return document(title, "".join(parts), script=SCRIPT if answers else "")


def markdown(results: Results) -> str:
    """The report as Markdown."""
    parts = [f"# Evaluation of {escape(results['model']['name'])}"]
    parts += [_PARTIAL] if results["status"] == "partial" else []
    for title, table in [*_tables(results), ("By type of question", type_table(results))]:
        if table.rows:
            parts += [f"## {title}", markdown_table(table)]
    if omitted := left_out(results):
        parts += ["## Left out", escape(omitted)]
    for title, values in _sources(results):
        rows = "\n".join(f"- {escape(name)}: {code(value)}" for name, value in flat_items(values))
        parts += [f"## {title}", rows]
    return "\n\n".join(parts) + "\n"


def _tables(results: Results) -> list[tuple[str, Table]]:
    """The tables in order, with their titles; those without rows are shown nowhere."""
    return [
        ("Exams of the paper's Table 1", paper_table(results)),
        ("More exams in Chinese", exam_table(results, "zh")),
        ("Exams and questions in English", exam_table(results, "en")),
        ("CBLUE", cblue_table(results)),
        ("Other tasks", other_table(results)),
        ("Ways of asking, side by side", protocol_table(results)),
    ]


def _header(results: Results) -> str:
    """What was scored, and how much."""
    model, tasks = results["model"], results["tasks"]
    banner = (
        f'<p class="banner" role="alert">{_PARTIAL}</p>' if results["status"] == "partial" else ""
    )
    where = [model["stage"], None if model["step"] is None else f"step {model['step']:,}"]
    numbers = [
        ("tasks", f"{len(tasks):,}"),
        ("items", f"{sum(task['items'] for task in tasks.values()):,}"),
        ("kind of model", " ".join(filter(None, [model["kind"], *where]))),
        ("digest", model["digest"][:12]),
    ]
    return (
        f'<header><p class="kicker">MedCare evaluation</p><h1>{text(model["name"])}</h1>'
        f"{banner}{tiles(numbers)}</header>\n"
    )


def _chart(results: Results) -> str:
    """The headline metric of every task by every protocol that has it."""
    bands = [
        Band(task["title"], metric_name(task["metric"]), dots)
        for task in results["tasks"].values()
        if (dots := _dots(task))
    ]
    if not bands:
        return ""
    kinds = dict.fromkeys(dot.kind for band in bands for dot in band.dots)
    chart = interval_chart(bands, title="Task scores")
    return f'{legend([(kind, kind) for kind in kinds])}<figure class="wide">{chart}</figure>'


def _dots(task: TaskResult) -> list[Dot]:
    """A task's scores as places between worst and best."""
    dots, metric = [], task["metric"]
    for name, protocol in task["protocols"].items():
        if score := protocol["scores"].get(metric):
            estimate = estimate_of(score)
            said = (
                f"{name}: {score_text(metric, estimate.score)} ({interval_text(metric, estimate)})"
            )
            places = [share_of_scale(metric, value) for value in estimate]
            dots.append(Dot(name, said, *places))
    return dots


def _provenance(results: Results) -> str:
    """Model, settings, files, versions, folded away."""
    return "".join(folded(title, facts(flat_items(v))) for title, v in _sources(results))


def _sources(results: Results) -> list[tuple[str, dict[str, Any]]]:
    """What the numbers come from."""
    parts = [("Model", results["model"]), ("Settings", results["settings"])]
    parts += [("Data", results["data"]), ("Versions", results["versions"])]
    return [(title, cast(dict[str, Any], values)) for title, values in parts]
