"""The study's results as JSON, as a Markdown table and as one page."""

import html
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from medcare_jax.evaluation.metrics import Estimate
from medcare_jax.evaluation.report.style import STYLE
from medcare_jax.files import write_json, write_text
from medcare_jax.run.facts import versions
from medcare_jax.study.frontier import frontier_chart
from medcare_jax.study.settings import Study
from medcare_jax.study.statistics import QUANTITIES, Result, Row, rows

_CHANGES = ("kept", "knowledge_nll")  # quantities that are differences themselves


def write_study(workdir: pathlib.Path, study: Study, results: Sequence[Result]) -> None:
    """Writes `study.json`, `study.md` and `study.html`; the same results give the same bytes."""
    table = rows(results, study.baseline)
    write_json(
        workdir / "study.json",
        {
            "seeds": list(study.seeds),
            "baseline": study.baseline,
            "results": list(results),
            "versions": versions(),
        },
    )
    write_text(workdir / "study.md", markdown(table, study, results))
    write_text(workdir / "study.html", page(table, study, results))


def markdown(table: Sequence[Row], study: Study, results: Sequence[Result]) -> str:
    """The tables: cells, angles, bases."""
    parts = [_heading(study, results), _markdown_table(*_cells(table, study))]
    for title, header, body in _geometry(results):
        parts += [title, _markdown_table(header, body)]
    return "\n\n".join(parts) + "\n"


def page(table: Sequence[Row], study: Study, results: Sequence[Result]) -> str:
    """One page without anything from elsewhere."""
    sections = [
        f"<section><h2>Retention against alignment</h2>{frontier_chart(table)}</section>",
        f"<section><h2>Cells</h2>{_html_table(*_cells(table, study))}</section>",
    ]
    sections += [
        f"<section><h2>{html.escape(title)}</h2>{_html_table(header, body)}</section>"
        for title, header, body in _geometry(results)
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Ablation</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<main><header><h1>What the constraint buys</h1><p>{html.escape(_heading(study, results))}"
        f"</p></header>{''.join(sections)}</main></body></html>\n"
    )


def _heading(study: Study, results: Sequence[Result]) -> str:
    """What the numbers are of, in one paragraph."""
    done = len({result["seed"] for result in results})
    over = "seeds (Student's t)" if done > 1 else "items of the one seed (bootstrap), scores only"
    return (
        f"{done} of {len(study.seeds)} seeds, {len(study.cells)} cells, all of a seed from one "
        f"MKA checkpoint per method. Scores in per cent, differences in points, NLL in nats per "
        f"token; 95 % intervals over {over}. Differences to `{study.baseline}` are paired by seed."
    )


def _cells(table: Sequence[Row], study: Study) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the main table."""
    header = ["cell", "seeds", *QUANTITIES.values()]
    header += [
        f"knowledge − {study.baseline}",
        f"alignment − {study.baseline}",
        f"knowledge NLL − {study.baseline}",
        f"alignment NLL − {study.baseline}",
        "basis width",
        "leak",
    ]
    body = []
    for row in table:
        means = [_number(row.means[q], q, signed=q in _CHANGES) for q in QUANTITIES]
        paired = [
            _number(row.paired[q], q, signed=True) if row.paired else "–"
            for q in ("kept", "alignment", "knowledge_nll", "alignment_nll")
        ]
        width = "–" if row.width is None else f"{100 * row.width:.1f} %"
        leak = "–" if row.leak is None else f"{row.leak:.1e}"
        body.append([row.cell, str(len(row.seeds)), *means, *paired, width, leak])
    return header, body


def _geometry(results: Sequence[Result]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Tables of the natural angles and of what each basis takes, as means over seeds."""
    found = [result["geometry"] for result in results if "geometry" in result]
    if not found:
        return []

    def mean(*path: str) -> float:
        return float(np.mean([_at(each, path) for each in found]))

    keys = ("median_cosine", "largest_cosine", "overlap")
    angles = [
        [when, *(f"{mean('angles', when, key):.3f}" for key in keys)]
        for when in ("before", "after")
    ]
    angles.append(["random subspaces", "", "", f"{mean('angles', 'random'):.3f}"])
    names = sorted(found[0]["bases"], key=lambda name: (not name.startswith("s"), name))
    shares = ("width", "overlap", "effect_removed")
    bases = [
        [name, *(f"{100 * mean('bases', name, key):.1f} %" for key in shares)] for name in names
    ]
    seeds = f"{len(found)} seed{'s' if len(found) > 1 else ''}"
    return [
        (
            f"Natural angles between the free alignment and the knowledge's span, {seeds}",
            ["DA", "median of largest cosines", "largest cosine", "mean squared cosine"],
            angles,
        ),
        (
            f"What each basis takes from the free alignment, {seeds}",
            [
                "basis",
                "share of the space",
                "alignment's A inside",
                "effect on knowledge inputs removed",
            ],
            bases,
        ),
    ]


def _at(value: Any, path: Sequence[str]) -> float:
    """A number deep inside."""
    for key in path:
        value = value[key]
    return float(value)


def _number(value: Estimate, name: str, *, signed: bool) -> str:
    """A mean with its interval, as its quantity is read."""
    factor, digits = (1.0, 3) if name.endswith("nll") else (100.0, 1)
    sign = "+" if signed else ""
    text = f"{factor * value.score:{sign}.{digits}f}"
    if not math.isfinite(value.low):
        return text
    return f"{text} ({factor * value.low:.{digits}f} to {factor * value.high:.{digits}f})"


def _markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Rows of a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _html_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """The same as HTML."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in body
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )
