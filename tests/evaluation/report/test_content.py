"""Curves that cannot be drawn are refused where they are made."""

import pytest

from medcare_jax.evaluation.report.content import StageCurve, flat_items

GOOD = {
    "name": "DA",
    "step": (1, 2),
    "loss": (2.0, 1.0),
    "learning_rate": (0.1, 0.0),
    "tokens_per_second": (5.0, 6.0),
}


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("loss", (1.0,), "expected 2 values of loss, one per step, got 1"),
        ("learning_rate", (), "expected 2 values of learning_rate"),
        ("leak", (1e-7,), "expected 2 values of leak"),
        ("loss", (1.0, float("nan")), "loss is not finite at step 2"),
        ("leak", (float("inf"), 0.0), "leak is not finite at step 1"),
    ],
)
def test_a_curve_has_a_finite_value_per_step(field, values, message):
    with pytest.raises(ValueError, match=message):
        StageCurve(**{**GOOD, field: values})


def test_no_leak_is_fine():
    assert StageCurve(**GOOD).leak == ()


def test_values_are_named_by_their_path_and_not_rounded():
    values = {
        "a": {"b": 1e-5, "c": True, "d": None, "e": []},
        "f": [{"kept": 12_345, "names": ("x", "y")}],
        "g": [[1, 2], [3]],
        "h": {},
    }
    assert flat_items(values) == [
        ("a.b", "1e-05"),
        ("a.c", "yes"),
        ("a.d", "–"),
        ("a.e", "–"),
        ("f.1.kept", "12,345"),
        ("f.1.names", "x, y"),
        ("g.1", "1, 2"),
        ("g.2", "3"),
    ]
