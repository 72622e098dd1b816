"""Expressions on names of modules: as `re` reads them, and ended where `re` would not end."""

import re
import time

import pytest

from medcare_jax.conversion import module_patterns
from medcare_jax.conversion.module_patterns import Patterns
from medcare_jax.fields import FieldError

NAMES = [
    f"model.layers.{layer}.{module}"
    for layer in (0, 1, 10)
    for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
]


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q_proj|v_proj)",
        r"(.*\.)?(up_proj)",
        r"model\.layers\.(0|1\d)\..*q_proj",
        r"^model\.(?!layers\.0).*_proj$",
        r"(?:.*?(?:self_attn|mlp).*?(?:q_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp\.(?:up_proj))",
        "q_proj",
        "",
    ],
)
def test_the_usual_forms_match_as_those_of_re(pattern: str) -> None:
    patterns = Patterns()
    for name in NAMES:
        expected = re.fullmatch(pattern, name) is not None
        assert patterns.matches(pattern, name, field="target_modules") == expected


@pytest.mark.parametrize("pattern", [r"((.|.)*(.|.)*)*\d\d", r"(?=(.|.)*\d\d).*"])
def test_one_that_would_not_end_is_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_patterns, "_SECONDS", 0.5)
    patterns, began = Patterns(), time.process_time()
    for _ in range(3):  # names share the time
        with pytest.raises(FieldError, match="rank_pattern could not be compared"):
            patterns.matches(pattern, NAMES[0], field="rank_pattern")
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"target_modules has '\(', expected the name of a module or a regular expression"),
        ("(?:" * 1000 + ")" * 1000, "target_modules has '.*', expected the name of a module"),
        ("a{1000}" * 2000, "an expression of 14000 characters, expected at most 10000"),
    ],
)
def test_what_is_no_expression_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        Patterns().matches(pattern, NAMES[0], field="target_modules")
