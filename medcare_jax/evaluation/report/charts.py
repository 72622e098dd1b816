"""Charts as SVG text that takes its colours from the page around it: light, dark, or print."""

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

HEIGHT = 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 34
_MOST_POINTS = 600  # a longer curve is thinned; a screen shows no more


class Axis(NamedTuple):
    """Values to pixels, and the values that are labelled."""

    place: Callable[[float], float]
    ticks: Sequence[float]
    label: Callable[[float], str]


def line_chart(
    steps: Sequence[float],
    values: Sequence[float],
    *,
    title: str,
    width: int = 520,
    smooth: int = 0,
    limit: float | None = None,
    use_log: bool = False,
) -> str:
    """A curve over steps as one `<svg>`.

    Args:
      steps: optimiser steps, ascending.
      values: one finite value per step.
      title: what is drawn, with its unit; read aloud by screen readers.
      width: user units; the height is `HEIGHT`.
      smooth: points that a second, heavier line is averaged over; 0 for none.
      limit: a value to draw a dashed line at, labelled with itself.
      use_log: a logarithmic axis; values of 0 stand at its lower end.

    Raises:
      ValueError: if there are no points or the two lengths differ.
    """
    if not values or len(steps) != len(values):
        raise ValueError(f"{title}: expected values at {len(steps)} steps, got {len(values)}")
    shown = [*values, *([] if limit is None else [limit])]
    x = _linear_axis([steps[0], steps[-1]], (_LEFT, width - _RIGHT), is_tight=True)
    span = (HEIGHT - _BOTTOM, _TOP)
    y = _log_axis(shown, span) if use_log else _linear_axis(shown, span)
    stride = -(-len(steps) // _MOST_POINTS)
    parts = [_grid(x, y, width)]
    if limit is not None:
        parts.append(_limit_line(y, limit, width))
    is_raw_faint = 1 < smooth < len(values)
    parts.append(_path(x, y, steps[::stride], values[::stride], "faint" if is_raw_faint else ""))
    if is_raw_faint:
        parts.append(_path(x, y, steps[::stride], _moving_mean(values, smooth)[::stride], ""))
    name = html.escape(title)
    return (
        f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{name}">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )


class Dot(NamedTuple):
    """A score on its interval.

    Attributes:
      kind: CSS class that gives the colour.
      said: What is told of it, on hovering and aloud.
      score, low, high: Places in [0, 1].
    """

    kind: str
    said: str
    score: float
    low: float
    high: float


class Band(NamedTuple):
    """A task: its name, what the numbers are, and a dot for each way or time of scoring it."""

    name: str
    note: str
    dots: Sequence[Dot]


def interval_chart(bands: Sequence[Band], *, title: str) -> str:
    """Scores with intervals, one band per task, from 0 % to 100 % of what can be reached."""
    left, band, width = 256, 62, 826
    height = _TOP + band * len(bands) + _BOTTOM
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    x = Axis(lambda v: left + v * (width - left - 24), ticks, lambda v: f"{100 * v:.0f}%")
    parts = [
        f'<line class="grid" x1="{x.place(v):.1f}" x2="{x.place(v):.1f}" y1="{_TOP}" '
        f'y2="{height - _BOTTOM}"/><text class="tick" text-anchor="middle" x="{x.place(v):.1f}" '
        f'y="{height - _BOTTOM + 18}">{x.label(v)}</text>'
        for v in ticks
    ]
    for index, entry in enumerate(bands):
        middle = _TOP + band * (index + 0.5)
        parts.append(
            f'<text class="name" text-anchor="end" x="{left - 16}" y="{middle - 2:.1f}">'
            f"{html.escape(entry.name)}</text>"
            f'<text class="tick" text-anchor="end" x="{left - 16}" y="{middle + 14:.1f}">'
            f"{html.escape(entry.note)}</text>"
        )
        parts += _dots(entry, x, middle)
    name = html.escape(title)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )


def _dots(band: Band, x: Axis, middle: float) -> list[str]:
    """A task's scores: a mark each on its interval, told apart by colour and height."""
    parts = []
    for place, dot in enumerate(band.dots):
        y = middle + 15 * (place - (len(band.dots) - 1) / 2)
        parts.append(
            f'<g class="stage {dot.kind}"><title>{html.escape(f"{band.name}, {dot.said}")}</title>'
            f'<line x1="{x.place(dot.low):.1f}" x2="{x.place(dot.high):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/><circle cx="{x.place(dot.score):.1f}" '
            f'cy="{y:.1f}" r="4.5"/></g>'
        )
    return parts


def _grid(x: Axis, y: Axis, width: int) -> str:
    """Horizontal lines with labels, and labels along the steps."""
    rows = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y.place(v):.1f}" '
        f'y2="{y.place(v):.1f}"/><text class="tick" text-anchor="end" x="{_LEFT - 8}" '
        f'y="{y.place(v) + 4:.1f}">{y.label(v)}</text>'
        for v in y.ticks
    )
    columns = "".join(
        f'<text class="tick" text-anchor="middle" x="{x.place(v):.1f}" '
        f'y="{HEIGHT - _BOTTOM + 18}">{x.label(v)}</text>'
        for v in x.ticks
    )
    name = f'<text class="tick" text-anchor="end" x="{_LEFT - 8}" y="{HEIGHT - 16}">step</text>'
    return rows + columns + name


def _limit_line(y: Axis, limit: float, width: int) -> str:
    """A dashed line that values should stay under."""
    place = y.place(limit)
    return (
        f'<line class="limit" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{place:.1f}" '
        f'y2="{place:.1f}"/><text class="limit" text-anchor="end" x="{width - _RIGHT}" '
        f'y="{place + 15:.1f}">limit {limit:g}</text>'
    )


def _path(x: Axis, y: Axis, steps: Sequence[float], values: Sequence[float], kind: str) -> str:
    """A line through points; a single point is drawn as a dot."""
    points = [
        f"{x.place(step):.1f},{y.place(value):.1f}"
        for step, value in zip(steps, values, strict=True)
    ]
    if len(points) == 1:
        left, top = points[0].split(",")
        return f'<circle class="dot" cx="{left}" cy="{top}" r="3.5"/>'
    return f'<polyline class="curve {kind}" points="{" ".join(points)}"/>'


def _linear_axis(
    values: Sequence[float], pixels: tuple[float, float], *, is_tight: bool = False
) -> Axis:
    """An axis over the values with three to seven round ticks; it ends at ticks unless tight."""
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    unit = _round_unit((high - low) / (5 if is_tight else 4))
    first = math.ceil(low / unit) if is_tight else math.floor(low / unit)
    last = math.floor(high / unit) if is_tight else math.ceil(high / unit)
    ticks = [unit * i for i in range(first, last + 1)]
    if not is_tight:
        low, high = ticks[0], ticks[-1]
    start, end = pixels
    return Axis(lambda value: start + (value - low) / (high - low) * (end - start), ticks, _short)


def _log_axis(values: Sequence[float], pixels: tuple[float, float]) -> Axis:
    """An axis over whole decades; what is not above 0 stands at its lower end."""
    above = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(above))), math.ceil(math.log10(max(above)))
    high = max(high, low + 1)
    start, end = pixels

    def place(value: float) -> float:
        exponent = math.log10(value) if value > 0 else low
        return start + (exponent - low) / (high - low) * (end - start)

    stride = -(-(high - low) // 6)
    return Axis(place, [10.0**e for e in range(low, high + 1, stride)], lambda v: f"{v:.0e}")


def _round_unit(rough: float) -> float:
    """The round number (1, 2 or 5 times a power of ten) at or above a rough one."""
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _short(value: float) -> str:
    """A tick's number without noise digits."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    return f"{value:,.6g}"


def _moving_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of up to `width` values that end at each place."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - width] if index >= width else 0.0)
        means.append(total / min(index + 1, width))
    return means
