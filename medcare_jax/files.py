"""Small files that are whole or absent, and the digest of a file."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file at once or not at all; see `write_text`."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: pathlib.Path, content: str) -> None:
    """Writes a text file at once or not at all, flushed to disk; parents are made.

    Raises:
      OSError: It could not be written; what was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    with draft.open("w", encoding="utf-8", newline="\n") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """The content of a JSON file, or None if there is no such file."""
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def file_digest(path: pathlib.Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
