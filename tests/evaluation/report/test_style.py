"""Colours are complete in both schemes, and the page loads nothing."""

import re

from medcare_jax.evaluation.report.style import STYLE


def test_every_colour_has_a_light_and_a_dark_value():
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)
    named = [set(re.findall(r"--[\w-]+(?=:)", part)) for part in (light, dark)]
    assert named[0] == named[1]
    used = set(re.findall(r"var\((--[\w-]+)\)", STYLE)) - {"--tone", "--columns"}
    assert used == named[0]


def test_nothing_is_loaded_from_elsewhere():
    assert not re.search(r"url\(|@import|https?:", STYLE)
    assert STYLE.count("{") == STYLE.count("}")
