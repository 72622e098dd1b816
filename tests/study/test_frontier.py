"""The frontier chart: points where their numbers are, names escaped, nothing outside."""

import re
import xml.etree.ElementTree as ET

import pytest

from medcare_jax.study.frontier import HEIGHT, WIDTH, frontier_chart
from medcare_jax.study.statistics import rows
from tests.study.results import five_seeds, result


def circles(svg):
    return [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]


def test_more_kept_stands_higher_and_better_aligned_further_right():
    results = [
        result("low", 0, known=[1, 0, 0, 0], written=[1, 0]),
        result("high <&>", 0, known=[1, 1, 1, 0], written=[1, 1]),
    ]
    svg = frontier_chart(rows(results, "low"))
    ET.fromstring(svg)
    (low_x, low_y), (high_x, high_y) = circles(svg)
    assert high_x > low_x
    assert high_y < low_y
    assert "high &lt;&amp;&gt;" in svg


@pytest.mark.parametrize("results", [five_seeds(), five_seeds()[:1], five_seeds()[:2]])
def test_all_stays_inside_whatever_the_intervals(results):
    svg = frontier_chart(rows(results, "none"))
    assert "inf" not in svg
    assert "nan" not in svg
    for x in re.findall(r' (?:x|x1|x2|cx)="([-\d.]+)"', svg):
        assert 0 <= float(x) <= WIDTH
    for y in re.findall(r' (?:y|y1|y2|cy)="([-\d.]+)"', svg):
        assert 0 <= float(y) <= HEIGHT


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="got none"):
        frontier_chart([])
