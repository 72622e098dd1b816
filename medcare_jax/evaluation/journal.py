"""What an evaluation has done so far, on disk: killed at any point, it goes on from there.

The journal is `samples.jsonl.part`: a line that says of which evaluation it is, then one line per
chunk of items. At the end its samples are written in order to `samples.jsonl` and it goes. Both
hold medical text, so both are readable by their owner alone.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medcare_jax.evaluation.results import PAGE_FILE, SAMPLES_FILE, ResultsError, Sample
from medcare_jax.files import PRIVATE, draft_of, drafted, open_own

JOURNAL_FILE = f"{SAMPLES_FILE}.part"

Chunk = tuple[str, str, int]
"""Task, protocol, and number of the chunk."""


def write_samples(folder: Path, samples: Iterable[Sample]) -> None:
    """Writes `samples.jsonl`, whole or not at all, readable by its owner alone."""
    with drafted(folder / SAMPLES_FILE, mode=PRIVATE) as file:
        for sample in samples:
            file.write(_line(sample))


def forget_samples(folder: Path) -> None:
    """Takes all text out of a folder whose results are without it: samples, journal, the page."""
    for name in (SAMPLES_FILE, JOURNAL_FILE, PAGE_FILE):
        (folder / name).unlink(missing_ok=True)
        draft_of(folder / name).unlink(missing_ok=True)


class Journal:
    """Chunks of samples by task, protocol and number; only their places are held in memory."""

    def __init__(self, folder: Path, key: str, *, is_writer: bool = True) -> None:
        """Opens the journal of a folder, or begins one if it is of another evaluation.

        Args:
          folder: where `samples.jsonl` will be.
          key: stands for model, items and settings.
          is_writer: whether this process writes; another one only reads what is there.

        Raises:
          ResultsError: a line before the last is damaged.
        """
        self._path = folder / JOURNAL_FILE
        self._places: dict[Chunk, int] = {}
        self._is_writer = is_writer
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open_own(self._path, mode=PRIVATE)
        try:
            is_ours = self._read(key)
        except ResultsError:
            self.close()
            raise
        if not is_ours and is_writer:
            self._places.clear()
            self._file.seek(0)
            self._file.truncate()
            self._write({"key": key})

    def __contains__(self, chunk: Chunk) -> bool:
        return chunk in self._places

    def append(self, chunk: Chunk, samples: Sequence[Sample]) -> None:
        """Adds a chunk; once this returns, it is on disk."""
        if not self._is_writer:
            return
        self._file.seek(0, os.SEEK_END)
        place = self._file.tell()
        self._write({"chunk": chunk, "samples": samples})
        self._places[chunk] = place

    def samples(self, chunk: Chunk) -> list[Sample]:
        """The samples of a chunk."""
        self._file.seek(self._places[chunk])
        samples: list[Sample] = json.loads(self._file.readline())["samples"]
        return samples

    def discard(self) -> None:
        """Takes the journal away; what it held stands in the files of the results."""
        self.close()
        if self._is_writer:
            self._path.unlink()

    def close(self) -> None:
        """Lets go of the file, which stays."""
        self._file.close()

    def _write(self, value: Any) -> None:
        """Appends one line, flushed to disk."""
        self._file.write(_line(value).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, key: str) -> bool:
        """Finds the chunks; cuts off a last line that was being written. False: not of this key."""
        place, is_ours = 0, False
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                if self._is_writer:
                    self._file.truncate(place)
                break
            try:
                value = json.loads(line)
                if number == 1 and value.get("key") != key:
                    return False
                if number > 1:
                    task, protocol, chunk = value["chunk"]
                    self._places[task, protocol, chunk] = place
            except (AttributeError, KeyError, TypeError, ValueError):
                raise ResultsError(
                    f"{self._path}:{number}: damaged; take the file away to begin anew"
                ) from None
            is_ours = True
            place += len(line)
        return is_ours


def _line(value: Any) -> str:
    """A value as one line of JSON."""
    return json.dumps(value, ensure_ascii=False) + "\n"
