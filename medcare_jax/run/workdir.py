"""The folder of one run: who holds it, what was decided in it, files that are whole or absent."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any


class WorkdirError(ValueError):
    """A workdir that this run cannot use."""


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder and keeps any other run out of it until the block ends.

    The lock is the operating system's: it goes when the process goes, however that ends.

    Raises:
      WorkdirError: Another process holds it; names that process.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise WorkdirError(
                f"{workdir} is in use by process {file.read().strip() or 'unknown'}; "
                "wait for it, or name another --workdir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file at once or not at all."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: pathlib.Path, content: str) -> None:
    """Writes a text file at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    with draft.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """The content of a JSON file, or None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
