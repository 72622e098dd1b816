"""Charts as XML: every value at the pixel that its axis says, nothing outside the picture."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcare_jax.evaluation.report.charts import HEIGHT, Band, Dot, interval_chart, line_chart
from medcare_jax.evaluation.report.comparison import compare
from medcare_jax.evaluation.report.run_page import score_chart
from medcare_jax.evaluation.tasks import TASKS

FINITE = st.floats(-1e9, 1e9, allow_subnormal=False)


def tree(svg):
    return ET.fromstring(svg)


def points(svg, kind="curve "):
    (line,) = (e for e in tree(svg).iter("polyline") if e.get("class") == kind)
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def tick_places(svg, anchor):
    """Pixel by label along one axis."""
    place = "y" if anchor == "end" else "x"
    return {
        e.text: float(e.get(place))
        for e in tree(svg).iter("text")
        if e.get("text-anchor") == anchor
    }


@given(st.lists(FINITE, min_size=2, max_size=30), st.booleans())
def test_any_curve_stays_inside_the_picture(values, use_log):
    steps = range(1, len(values) + 1)
    svg = line_chart(steps, values, title="t", use_log=use_log, limit=1e-6 if use_log else None)
    for x, y in points(svg):
        assert 0 <= x <= 520
        assert -0.1 <= y <= HEIGHT


def test_values_stand_where_the_axis_says():
    svg = line_chart([0, 10, 20], [0.0, 2.0, 4.0], title="t")
    rows, columns = tick_places(svg, "end"), tick_places(svg, "middle")
    for (x, y), (step, value) in zip(
        points(svg), [("0", "0"), ("10", "2"), ("20", "4")], strict=True
    ):
        assert x == pytest.approx(columns[step], abs=0.1)
        assert y + 4 == pytest.approx(rows[value], abs=0.1)


def test_decades_are_evenly_spaced_and_zero_is_at_the_bottom():
    svg = line_chart([1, 2, 3, 4], [0.0, 1e-8, 1e-7, 1e-6], title="t", use_log=True, limit=1e-6)
    heights = [y for _, y in points(svg)]
    assert heights[0] == heights[1] == max(heights)
    assert heights[1] - heights[2] == pytest.approx(heights[2] - heights[3], abs=0.1)
    (limit,) = (e for e in tree(svg).iter("line") if e.get("class") == "limit")
    assert float(limit.get("y1")) == pytest.approx(heights[3], abs=0.1)


def test_a_smoothed_curve_is_the_trailing_mean():
    values = [4.0, 0.0, 4.0, 0.0]
    svg = line_chart([1, 2, 3, 4], values, title="t", smooth=2)
    raw, smooth = points(svg, "curve faint"), points(svg)
    assert smooth[0] == raw[0]
    for _, y in smooth[1:]:
        assert y == pytest.approx((raw[0][1] + raw[1][1]) / 2, abs=0.11)


def test_one_step_is_a_dot_and_a_long_curve_is_thinned():
    assert next(tree(line_chart([5], [1.0], title="t")).iter("circle")).get("class") == "dot"
    many = line_chart(range(50_000), [float(i % 7) for i in range(50_000)], title="t")
    assert 300 <= len(points(many)) <= 600


def test_text_cannot_become_markup():
    assert tree(line_chart([1, 2], [1.0, 2.0], title='<&">')).get("aria-label") == '<&">'


@pytest.mark.parametrize(("steps", "values"), [([], []), ([1, 2], [1.0])])
def test_curves_without_points_are_refused(steps, values):
    with pytest.raises(ValueError, match="t: expected values at"):
        line_chart(steps, values, title="t")


def test_the_longest_name_of_a_task_has_room():
    name = max((spec.title for spec in TASKS.values()), key=len)
    dot = Dot("base", "said", 0.5, 0.25, 0.75)
    svg = interval_chart([Band(name, "accuracy", [dot])], title="t")
    (end,) = (float(e.get("x")) for e in tree(svg).iter("text") if e.get("class") == "name")
    assert end > 7.9 * len(name)  # pixels of a bold letter of 13.5, on the wide side


def test_scores_stand_between_the_ends_of_their_intervals(report):
    svg = score_chart(compare(report.scores))
    zero, one = (tick_places(svg, "middle")[label] for label in ("0%", "100%"))
    groups = [g for g in tree(svg).iter("g")]
    assert len(groups) == 2 * 3, "headline metrics only, every stage"
    heads = [row for row in compare(report.scores) if row.is_headline]
    wanted = [estimate for row in heads for estimate in row.estimates.values()]
    for group, estimate in zip(groups, wanted, strict=True):
        drawn = [float(group.find("circle").get("cx"))]
        drawn += [float(group.find("line").get(end)) for end in ("x1", "x2")]
        assert [(x - zero) / (one - zero) for x in drawn] == pytest.approx(list(estimate), abs=1e-3)
