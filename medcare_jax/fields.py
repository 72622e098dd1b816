"""Fields of a JSON object that somebody else wrote, each read as the type that it must have."""

import dataclasses
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# What arrays can be indexed with, and what float32 holds with all its digits.
_LARGEST_SIZE = 2**31 - 1
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class FieldError(ValueError):
    """A field that is missing, or whose value is not of the type or range that it must have."""


@dataclasses.dataclass(frozen=True)
class Fields:
    """An object's fields. A null counts as absent; no value is ever turned into another type.

    Attributes:
      content: The object.
      place: Where it stands within its file, for errors: `rope_scaling.` of an inner one.

    >>> Fields({"hidden_size": "64"}).size("hidden_size")
    Traceback (most recent call last):
    medcare_jax.fields.FieldError: hidden_size = '64', expected a whole number from 1 to 2147483647
    """

    content: Mapping[str, Any]
    place: str = ""

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self.content.get(name) is not None

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1; without a default it must be there."""
        value = self._value(name, default)
        if not _is_whole(value, least=1):
            raise self._error(name, f"a whole number from 1 to {_LARGEST_SIZE}")
        return int(value)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0, whole or not; without a default it must be there."""
        value = self._value(name, default)
        if not _is_number(value) or not _SMALLEST <= value <= _LARGEST:
            raise self._error(name, f"a number from {_SMALLEST:.2g} to {_LARGEST:.2g}")
        return float(value)

    def share(self, name: str, default: float) -> float:
        """A number from 0 to below 1."""
        value = self._value(name, default)
        if not _is_number(value) or not 0 <= value < 1:
            raise self._error(name, "a number from 0 to below 1")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false, and nothing that only counts as one of them."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._error(name, "true or false")
        return value

    def text(self, name: str, default: str) -> str:
        """A text."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self._error(name, "a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; none if it is absent."""
        value = self._value(name, [])
        if not isinstance(value, list | tuple) or not all(isinstance(x, str) for x in value):
            raise self._error(name, "a list of texts")
        return tuple(value)

    def indices(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers from 0, or one of them; none if it is absent."""
        value = self._value(name, [])
        found = value if isinstance(value, list | tuple) else [value]
        if not all(_is_whole(index, least=0) for index in found):
            raise self._error(name, f"whole numbers from 0 to {_LARGEST_SIZE}")
        return tuple(found)

    def inner(self, name: str) -> "Fields":
        """The fields of an object within; none if it is absent."""
        value = self._value(name, {})
        if not isinstance(value, Mapping):
            raise self._error(name, "an object")
        return Fields(value, f"{self.place}{name}.")

    def _value(self, name: str, default: Any) -> Any:
        """The value, or the default of a field that is absent."""
        value = self.content.get(name)
        value = default if value is None else value
        if value is None:
            raise FieldError(f"there is no field {self.place + name!r}, which is needed")
        return value

    def _error(self, name: str, expected: str) -> FieldError:
        """What to say of a field's value."""
        came = reprlib.repr(self.content.get(name))
        return FieldError(f"{self.place}{name} = {came}, expected {expected}")


def _is_whole(value: Any, *, least: int) -> bool:
    """Whether a value is a whole number that a size or an index can be; true is none."""
    return type(value) is int and least <= value <= _LARGEST_SIZE


def _is_number(value: Any) -> bool:
    """Whether a value is a number; true is none, NaN and infinity are and fail any range."""
    return isinstance(value, int | float) and not isinstance(value, bool)
