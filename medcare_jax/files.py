"""Small files that are whole or absent, the digest of a file, and disks that are full."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, TextIO

PRIVATE = 0o600
"""The mode of files with medical text: for their owner alone."""
_USUAL = 0o666


class DiskFullError(OSError):
    """A disk filled up; the message names it and says what is left of the work."""


@contextlib.contextmanager
def naming_full_disk(folder: pathlib.Path) -> Iterator[None]:
    """Says of any error in the block that means a full disk which disk that is.

    Raises:
      DiskFullError: In place of that error.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        mebibytes = shutil.disk_usage(folder).free / 2**20
        raise DiskFullError(
            f"the disk of {folder.absolute()} is full ({mebibytes:.1f} MiB free). Nothing that is "
            "half-written is used; make room, and the same command goes on from the last checkpoint"
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error is the system's for want of room; of tensorstore's, the text has its number.

    >>> is_disk_full(OSError(errno.ENOSPC, "No space left on device"))
    True
    """
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    return any(f"os_error_code='{number}'" in str(error) for number in numbers)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file at once or not at all; see `write_text`.

    Keys are sorted at every level, so that equal contents are equal bytes however they were made.
    """
    write_text(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: pathlib.Path, content: str, *, mode: int = _USUAL) -> None:
    """Writes a text file at once or not at all; see `drafted`."""
    with drafted(path, mode=mode) as file:
        file.write(content)


@contextlib.contextmanager
def drafted(path: pathlib.Path, *, mode: int = _USUAL) -> Iterator[TextIO]:
    """A text file to write into, flushed to disk and in its place if the block ends well.

    Args:
      path: Of the file; parents are made.
      mode: Who may read it, from its first byte on; the umask takes away from it as ever.

    Raises:
      OSError: It could not be written; what was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    draft.unlink(missing_ok=True)  # one that a killed process left keeps its own mode
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)  # it may hold medical text
        raise


def open_own(path: pathlib.Path, *, mode: int = _USUAL) -> BinaryIO:
    """A file to go on with, made if need be: never what a link points to.

    Args:
      path: Of the file, in a folder that is there.
      mode: Who may read it. A private one becomes private even if it was not.

    Raises:
      OSError: It is a link, or cannot be written.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error.strerror = "it is a link, expected a file; take it away"
        raise
    if mode == PRIVATE:
        os.fchmod(handle, mode)
    return os.fdopen(handle, "r+b")


def draft_of(path: pathlib.Path) -> pathlib.Path:
    """What `drafted` writes a file as, until it is whole; a killed process leaves it."""
    return path.with_name(f".{path.name}.part")


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
