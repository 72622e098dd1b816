"""Retention against alignment as one `<svg>`: up and to the right is better."""

import html
import math
from collections.abc import Sequence

from medcare_jax.evaluation.metrics import Estimate
from medcare_jax.study.statistics import Row

WIDTH, HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 16, 46
_TICKS = 6


def frontier_chart(rows: Sequence[Row]) -> str:
    """A point per cell at its mean alignment and retention, with 95 % intervals over seeds.

    Args:
      rows: of `statistics.rows`; at least one.

    Raises:
      ValueError: There is no row.
    """
    if not rows:
        raise ValueError("expected at least one cell to draw, got none")
    x = _Scale([row.means["alignment"] for row in rows], _LEFT, WIDTH - _RIGHT)
    y = _Scale([row.means["kept"] for row in rows], HEIGHT - _BOTTOM, _TOP)
    parts = [*_grid(x, y), *(_point(row, x, y) for row in rows)]
    title = "Retention against alignment"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{''.join(parts)}</svg>"
    )


class _Scale:
    """Values to pixels over all intervals, with a margin."""

    def __init__(self, values: Sequence[Estimate], start: float, end: float) -> None:
        bounds = [b for each in values for b in each if math.isfinite(b)]
        margin = 0.06 * (max(bounds) - min(bounds)) or 0.05
        self.low, self.high = min(bounds) - margin, max(bounds) + margin
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        """The place of a value; one without bounds stands at the edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Values to label."""
        return [self.low + (self.high - self.low) * i / (_TICKS - 1) for i in range(_TICKS)]


def _grid(x: _Scale, y: _Scale) -> list[str]:
    """Lines, numbers in per cent, and what the axes are."""
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    rows = [
        f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text class="tick" text-anchor="end" x="{_LEFT - 8}" y="{y(v) + 4:.1f}">'
        f"{100 * v:.1f}</text>"
        for v in y.ticks()
    ]
    columns = [
        f'<line class="grid" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="{_TOP}" y2="{bottom}"/>'
        f'<text class="tick" text-anchor="middle" x="{x(v):.1f}" y="{bottom + 16}">'
        f"{100 * v:.1f}</text>"
        for v in x.ticks()
    ]
    names = [
        f'<text class="tick" text-anchor="middle" x="{(_LEFT + right) / 2}" y="{HEIGHT - 8}">'
        "alignment after DA, %</text>",
        f'<text class="tick" text-anchor="middle" transform="translate(14 {bottom / 2}) '
        'rotate(-90)">knowledge, DA − MKA, points</text>',
    ]
    return [*rows, *columns, *names]


def _point(row: Row, x: _Scale, y: _Scale) -> str:
    """A cell: its mean, its two intervals, its name."""
    across, up = row.means["alignment"], row.means["kept"]
    name = html.escape(row.cell)
    return (
        f'<g class="stage da"><title>{name}: alignment {100 * across.score:.1f} %, knowledge '
        f"{100 * up.score:+.1f} points, {len(row.seeds)} seeds</title>"
        f'<line x1="{x(across.low):.1f}" x2="{x(across.high):.1f}" y1="{y(up.score):.1f}" '
        f'y2="{y(up.score):.1f}"/><line x1="{x(across.score):.1f}" x2="{x(across.score):.1f}" '
        f'y1="{y(up.low):.1f}" y2="{y(up.high):.1f}"/>'
        f'<circle cx="{x(across.score):.1f}" cy="{y(up.score):.1f}" r="4.5"/>'
        f'<text class="tick" x="{x(across.score) + 8:.1f}" y="{y(up.score) - 6:.1f}">{name}</text>'
        "</g>"
    )
