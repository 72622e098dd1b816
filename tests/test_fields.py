"""Fields of foreign JSON objects: of the type that they must have, or refused by name."""

from typing import Any

import pytest

from medcare_jax.fields import FieldError, Fields


def test_absent_ones_have_their_default_and_null_is_absent() -> None:
    fields = Fields({"size": None, "inner": None})
    assert (fields.size("size", 3), fields.number("number", 2.5)) == (3, 2.5)
    assert (fields.flag("flag", True), fields.text("text", "a")) == (True, "a")
    assert (fields.texts("texts"), fields.indices("indices")) == ((), ())
    assert (dict(fields.inner("inner").content), fields.has("size")) == ({}, False)
    for read in (fields.size, fields.number):
        with pytest.raises(FieldError, match="there is no field 'size', which is needed"):
            read("size")


def test_values_of_the_right_type_are_what_they_are() -> None:
    fields = Fields({"a": 7, "b": 0.5, "c": False, "d": ["x"], "e": [0, 2], "f": {"g": 1}})
    assert (fields.size("a"), fields.number("a"), fields.indices("a")) == (7, 7.0, (7,))
    assert type(fields.number("a")) is float
    assert (fields.number("b"), fields.share("b", 0.0), fields.flag("c", True)) == (0.5, 0.5, False)
    assert (fields.texts("d"), fields.indices("e")) == (("x",), (0, 2))
    assert list(fields.inner("f")) == ["g"]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("size", ["1", 1.0, True, 0, -1, 2**31, 10**400, [1], {}]),
        ("number", ["1", True, 0, -0.5, float("nan"), float("inf"), 1e-300, 1e300, 10**400, [1]]),
        ("share", ["0", False, -0.1, 1, 1.1, float("nan"), [0]]),
        ("flag", ["false", 0, 1, []]),
        ("text", [1, ["a"], True]),
        ("texts", ["a", 5, [5], {"a": 1}]),
        ("indices", ["a", 1.5, [1.5], [-1], [True], {"a": 1}]),
        ("inner", ["a", 5, [1], False]),
    ],
)
def test_anything_else_is_refused_by_name(kind: str, values: list[Any]) -> None:
    for value in values:
        inner = Fields({"inner": {"field": value}}).inner("inner")
        defaults = {"share": (0.0,), "flag": (True,), "text": ("",)}
        with pytest.raises(FieldError, match=r"^inner\.field = .*, expected "):
            getattr(inner, kind)("field", *defaults.get(kind, ()))


def test_a_long_value_is_shown_in_part() -> None:
    with pytest.raises(FieldError) as caught:
        Fields({"a": "x" * 10_000}).size("a")
    assert len(str(caught.value)) < 200
