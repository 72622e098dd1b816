"""The JSON files that lie beside weights."""

import collections
import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.models.families import UnsupportedModelError

_MOST_LISTED = 8


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      FileNotFoundError: No such file.
      ConversionError: Not a file, not JSON, not an object, or a key twice in one object.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; the folder needs it")
    if not path.is_file():  # a pipe would be waited for without end
        raise ConversionError(f"{path} is not a file; fetch it again")
    return parse_object(path.read_bytes(), path)


def parse_object(text: bytes, path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a part of a file; nothing in it is dropped or made up.

    Raises:
      ConversionError: Not JSON (NaN and Infinity are Python's), not an object, or a key twice in
        one object, of which the parser would keep the last.
    """
    try:
        parsed = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except _RepeatedKeysError as error:
        raise ConversionError(f"{path} lists {error} twice; fetch it again") from None
    except ValueError as error:
        raise ConversionError(f"{path} is not JSON: {error}") from error
    except RecursionError:
        raise ConversionError(f"{path} is not JSON: nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ConversionError(f"{path} holds a {type(parsed).__name__}, not an object")
    return parsed


def write_object(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """A JSON object to a file, same content same bytes."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Gives what is wrong with a file's fields the file's name.

    Raises:
      UnsupportedModelError: Where that was raised.
      ConversionError: For any other value that cannot be used.
    """
    try:
        yield
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path}: {error}") from None
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConversionError(f"{path}: {error}; correct it or fetch the file again") from error


def list_some(names: list[str]) -> str:
    """A list of names that fits a line."""
    rest = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + rest if names else "none"


class _RepeatedKeysError(ValueError):
    """Keys that stand twice in one object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without a key that stands twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        repeated = sorted(name for name, number in counts.items() if number > 1)
        raise _RepeatedKeysError(list_some(repeated))
    return content


def _refuse_constant(name: str) -> NoReturn:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(f"{name} is not a JSON value")
