"""The report of a run as one HTML page: no script, no network, light and dark."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from medcare_jax.evaluation.report.charts import Band, Dot, interval_chart, line_chart
from medcare_jax.evaluation.report.comparison import (
    SIGNIFICANCE,
    STAGES,
    Change,
    Row,
    compare,
    findings,
    span_title,
)
from medcare_jax.evaluation.report.content import RunReport, StageCurve, flat_items
from medcare_jax.evaluation.report.data_tables import file_table, other_facts
from medcare_jax.evaluation.report.elements import (
    document,
    facts,
    folded,
    legend,
    section,
    text,
    tiles,
)
from medcare_jax.evaluation.report.tables import html_table
from medcare_jax.evaluation.report.wording import (
    difference_text,
    interval_text,
    p_value,
    score_text,
    share_of_scale,
)
from medcare_jax.evaluation.results import headline

_VERDICTS = {
    "better": "better",
    "worse": "worse",
    "unclear": "no clear change",
    "untested": "not tested",
}


def html_page(content: RunReport) -> str:
    """The whole page as text.

    Args:
      content: what to report.

    Raises:
      ValueError: if stages scored other tasks or items, so that no pair can be compared.
    """
    rows = compare(content.scores)
    sections = [
        _header(content),
        section("What the numbers say", _findings(rows)),
        section("Scores", _scores(rows, content.scores)) if rows else "",
        *(section(f"Training: {stage.name}", _stage(stage)) for stage in content.stages),
        section("Data", html_table(file_table(content.data)) + facts(other_facts(content.data))),
        section("How it was made", _provenance(content)),
    ]
    return document(content.title, "".join(sections))


def stage_facts(stage: StageCurve) -> list[tuple[str, str]]:
    """What a stage came to, as names and texts; none for a stage without a step."""
    if not stage.step:
        return []
    tail = stage.loss[-max(1, len(stage.loss) // 10) :]
    facts = [
        ("steps", f"{stage.step[-1]:,}"),
        ("loss, first step", f"{stage.loss[0]:.4f}"),
        ("loss, last tenth", f"{statistics.fmean(tail):.4f}"),
        ("peak learning rate", f"{max(stage.learning_rate):.3g}"),
        ("tokens/s, median", f"{statistics.median(stage.tokens_per_second):,.0f}"),
    ]
    if stage.leak:
        worst = max(stage.leak)
        facts.append(("largest drift", f"{worst:.2e}"))
        if stage.leak_limit is not None:
            verdict = "holds" if worst <= stage.leak_limit else "BROKEN"
            facts.append((f"drift limit {stage.leak_limit:g}", verdict))
    return facts


def _header(content: RunReport) -> str:
    """Title, base and export."""
    export = f"<dt>Exported model</dt><dd>{text(content.export)}</dd>" if content.export else ""
    return (
        f'<header><p class="kicker">MedCare run</p><h1>{text(content.title)}</h1>'
        f'<dl class="inline"><dt>Base model</dt><dd>{text(content.base)}</dd>{export}</dl>'
        "</header>\n"
    )


def _findings(rows: Sequence[Row]) -> str:
    """The sentences, good news and bad alike."""
    said = findings(rows)
    if not said:
        return "<p>No task was scored before and after a stage, so there is nothing to compare.</p>"
    items = "".join(
        f'<li class="{verdict}"><span class="mark">{_VERDICTS[verdict]}</span>'
        f"<span>{text(sentence)}</span></li>"
        for verdict, sentence in said
    )
    return f'<ul class="findings">{items}</ul>'


def _scores(rows: Sequence[Row], scores: Mapping[str, Any]) -> str:
    """Chart, table, breakdown by type, and how to read them."""
    keys = [(stage, STAGES[stage]) for stage in rows[0].estimates]
    note = (
        "Scores are of all items; bars and brackets are 95 % intervals (Wilson's for shares, "
        "else the bootstrap's). Changes of shares are in percentage points, with the p-value of "
        "a paired test on the same items (McNemar's exact one for shares, else by permutation), "
        "not corrected for the number of comparisons; below "
        f"{SIGNIFICANCE:g} a change is called better or worse."
    )
    return (
        f'{legend(keys)}<figure class="wide">{score_chart(rows)}</figure>'
        f'{_score_table(rows)}<p class="note">{text(note)}{_left_out(scores)}</p>'
        f"{_type_table(scores)}"
    )


def score_chart(rows: Sequence[Row]) -> str:
    """Every headline metric at every stage."""
    bands = [
        Band(
            row.task,
            row.label,
            [_dot(row, stage) for stage in row.estimates],
        )
        for row in rows
        if row.is_headline
    ]
    return interval_chart(bands, title="Task scores")


def _dot(row: Row, stage: str) -> Dot:
    """A stage's score on its interval."""
    found = row.estimates[stage]
    said = f"{STAGES[stage]}: {score_text(row.metric, found.score)} "
    said += f"({interval_text(row.metric, found)})"
    return Dot(stage, said, *(share_of_scale(row.metric, value) for value in found))


def _score_table(rows: Sequence[Row]) -> str:
    """One line per task and metric, grouped by kind of task."""
    stages, pairs = list(rows[0].estimates), list(rows[0].changes)
    head = "".join(
        [
            '<th scope="col">task</th><th scope="col" class="number">items</th>',
            *(f'<th scope="col" class="number">{STAGES[s]}</th>' for s in stages),
            *(f'<th scope="col" class="number">{span_title(*pair)}</th>' for pair in pairs),
        ]
    )
    width = 2 + len(stages) + len(pairs)
    body, kind = [], ""
    for row in rows:
        if row.kind != kind:
            kind = row.kind
            body.append(f'<tr class="kind"><th colspan="{width}">{text(kind)}</th></tr>')
        body.append(_score_row(row))
    return (
        f'<div class="scroll"><table class="scores"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _score_row(row: Row) -> str:
    """Scores and changes of one task and metric."""
    cells = "".join(
        f'<td class="number"><strong>{score_text(row.metric, e.score)}</strong>'
        f"<small>{interval_text(row.metric, e)}</small></td>"
        for e in row.estimates.values()
    )
    changes = "".join(_change_cell(row.metric, change) for change in row.changes.values())
    importance = "head" if row.is_headline else "minor"
    return (
        f'<tr class="{importance}"><th scope="row">{text(row.task)}'
        f"<small>{text(row.label)}</small></th>"
        f'<td class="number">{row.items:,}</td>{cells}{changes}</tr>'
    )


def _change_cell(metric: str, change: Change) -> str:
    """A difference, its p-value, and its verdict as colour."""
    delta = difference_text(metric, change.delta)
    return (
        f'<td class="number change {change.verdict}"><strong>{delta}</strong>'
        f"<small>{text(p_value(change.p_value))}</small></td>"
    )


def _left_out(scores: Mapping[str, Any]) -> str:
    """Which items no model was asked, as one sentence."""
    results, *others = (result for stage in STAGES if (result := scores.get(stage)))
    counts = [
        f"{task}: {count:,} {reason}"
        for task, result in results["tasks"].items()
        for reason, count in result["left_out"].items()
        if count and all(o["tasks"][task]["left_out"].get(reason) == count for o in others)
    ]
    return text(f" Left out of every stage: {'; '.join(counts)}.") if counts else ""


def _type_table(scores: Mapping[str, Any]) -> str:
    """Headline scores per type of item, folded away; nothing if no task has several types."""
    stages = [stage for stage in STAGES if scores.get(stage)]
    by_stage = [
        {
            (task, name): (score_text(result["metric"], entry["score"]), entry["items"])
            for task, result in scores[stage]["tasks"].items()
            if (main := headline(result)) and len(main["types"]) > 1
            for name, entry in main["types"].items()
        }
        for stage in stages
    ]
    common = [key for key in by_stage[0] if all(key in found for found in by_stage)]
    if not common:
        return ""
    head = "".join(f'<th scope="col" class="number">{STAGES[stage]}</th>' for stage in stages)
    body = "".join(
        f'<tr><th scope="row">{text(task)}<small>{text(name)}</small></th>'
        f'<td class="number">{by_stage[0][task, name][1]:,}</td>'
        + "".join(f'<td class="number">{found[task, name][0]}</td>' for found in by_stage)
        + "</tr>"
        for task, name in common
    )
    return (
        '<details><summary>By type of question</summary><div class="scroll"><table><thead><tr>'
        f'<th scope="col">task</th><th scope="col" class="number">items</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def _stage(stage: StageCurve) -> str:
    """A stage's figures in numbers and curves."""
    if not stage.step:
        return "<p>No step was taken.</p>"
    smooth = len(stage.step) // 20
    hint = f"heavy line: mean of {smooth} steps" if smooth > 1 else ""
    curves: list[tuple[str, str, Sequence[float], dict[str, Any]]] = [
        ("loss, nats per target token", hint, stage.loss, {"smooth": smooth}),
        ("learning rate", "", stage.learning_rate, {}),
        ("tokens per second", "", stage.tokens_per_second, {}),
    ]
    if stage.leak:
        hint = "largest ‖QᵀA‖ / ‖A‖ over projections"
        limits = {"limit": stage.leak_limit, "use_log": True}
        curves.append(("orthogonality drift", hint, stage.leak, limits))
    columns = 2 if len(curves) == 4 else 3
    charts = [_figure(stage, *curve, width=1040 // columns) for curve in curves]
    grid = f'<div class="charts by-{columns}">{"".join(charts)}</div>'
    return tiles(stage_facts(stage)) + grid


def _figure(
    stage: StageCurve,
    title: str,
    hint: str,
    values: Sequence[float],
    options: Mapping[str, Any],
    *,
    width: int,
) -> str:
    """A captioned curve over a stage's steps."""
    chart = line_chart(stage.step, values, title=f"{stage.name}: {title}", width=width, **options)
    caption = f"{text(title)}<small>{text(hint) or '&nbsp;'}</small>"
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"


def _provenance(content: RunReport) -> str:
    """Settings, digests and versions, folded away."""
    parts = [
        ("Settings", content.settings),
        ("Digests", content.digests),
        ("Versions", content.versions),
    ]
    return "".join(folded(title, facts(flat_items(values))) for title, values in parts)
