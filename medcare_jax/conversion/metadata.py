"""The JSON files that lie beside weights."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from medcare_jax.conversion.tensors import ConversionError


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      FileNotFoundError: No such file.
      ConversionError: Not JSON, or not an object.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; the folder needs it")
    try:
        parsed = json.loads(path.read_bytes())
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
