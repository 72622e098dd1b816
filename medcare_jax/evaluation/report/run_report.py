"""The report of a run: `report.md` for a terminal, `report.html` for a reader."""

from collections.abc import Sequence
from pathlib import Path

from medcare_jax.evaluation.report.comparison import (
    STAGES,
    Row,
    compare,
    findings,
    span_title,
)
from medcare_jax.evaluation.report.content import RunReport, StageCurve, flat_items
from medcare_jax.evaluation.report.data_tables import file_table, other_facts
from medcare_jax.evaluation.report.run_page import html_page, stage_facts
from medcare_jax.evaluation.report.tables import code, escape, markdown_table
from medcare_jax.evaluation.report.wording import (
    difference_text,
    interval_text,
    p_value,
    score_text,
)
from medcare_jax.files import write_text

__all__ = ["RunReport", "StageCurve", "markdown", "write_report"]

_MARKS = {"better": "**+**", "worse": "**−**", "unclear": "○", "untested": "?"}


def write_report(workdir: str | Path, content: RunReport) -> tuple[Path, Path]:
    """Writes `report.md` and `report.html`, each whole or not at all.

    The HTML is one file that loads nothing: it can be mailed, archived, and read offline.

    Args:
      workdir: an existing folder.
      content: what to report.

    Returns:
      The two paths.

    Raises:
      ValueError: if stages scored other tasks or items, so that no pair can be compared.
    """
    texts = {"report.md": markdown(content), "report.html": html_page(content)}
    for name, text in texts.items():
        write_text(Path(workdir, name), text)
    return Path(workdir, "report.md"), Path(workdir, "report.html")


def markdown(content: RunReport) -> str:
    """The report as Markdown: findings, scores, stages, data, settings, digests, versions."""
    rows = compare(content.scores)
    parts = [f"# {escape(content.title)}", f"Base model: {code(content.base)}"]
    if content.export:
        parts.append(f"Exported model: {code(content.export)}")
    parts += ["## What the numbers say", _said(rows)]
    if rows:
        parts += ["## Scores", _score_table(rows)]
    parts += ["## Training", _stage_table(content.stages)] if content.stages else []
    sections = {
        "Data": other_facts(content.data),
        "Settings": flat_items(content.settings),
        "Digests": flat_items(content.digests),
        "Versions": flat_items(content.versions),
    }
    for title, items in sections.items():
        if items:
            parts += [f"## {title}"]
            parts += [files] if title == "Data" and (files := _files(content)) else []
            parts += [_table(["", ""], [[name, code(text)] for name, text in items])]
    return "\n\n".join(parts) + "\n"


def _files(content: RunReport) -> str:
    """What became of each training file."""
    return markdown_table(file_table(content.data))


def _said(rows: Sequence[Row]) -> str:
    """The findings as a list."""
    said = [f"- {_MARKS[verdict]} {escape(text)}" for verdict, text in findings(rows)]
    nothing = "No task was scored before and after a stage, so there is nothing to compare."
    return "\n".join(said) or nothing


def _score_table(rows: Sequence[Row]) -> str:
    """One line per task and metric."""
    stages, pairs = list(rows[0].estimates), list(rows[0].changes)
    head = [
        *("task", "metric", "items"),
        *(STAGES[stage] for stage in stages),
        *(span_title(*pair) for pair in pairs),
    ]
    body = [
        [
            escape(row.task),
            row.label,
            str(row.items),
            *(
                f"{score_text(row.metric, e.score)} ({interval_text(row.metric, e)})"
                for e in row.estimates.values()
            ),
            *(
                f"{difference_text(row.metric, c.delta)} ({p_value(c.p_value)})"
                for c in row.changes.values()
            ),
        ]
        for row in rows
    ]
    return _table(head, body)


def _stage_table(stages: Sequence[StageCurve]) -> str:
    """What each stage came to."""
    names = list(dict.fromkeys(name for stage in stages for name, _ in stage_facts(stage)))
    facts = [dict(stage_facts(stage)) for stage in stages]
    body = [[name, *(fact.get(name, "–") for fact in facts)] for name in names]
    return _table(["", *(escape(stage.name) for stage in stages)], body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
