"""The record of a stage, one line of numbers per step, that survives kill and resume."""

import contextlib
import json
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from medcare_jax.files import write_text
from medcare_jax.training.events import Events

METRICS, SKIPPED = "metrics.jsonl", "skipped.jsonl"


class History:
    """`metrics.jsonl`, TensorBoard events and `skipped.jsonl` of one stage.

    Lines after the step that the run goes on from belong to work that was lost; they are taken
    out when the file is opened, so each step stands there once. Holds numbers only, and of the
    records of a step that was left out their ids and places; no text of any record.
    """

    def __init__(self, folder: pathlib.Path, *, first_step: int) -> None:
        """Opens the record; the next line to come is that of `first_step` + 1."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for name in (METRICS, SKIPPED):
            if name == METRICS or (folder / name).exists():
                kept = [x for x in read_history(folder / name) if x["step"] <= first_step]
                write_text(folder / name, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = (folder / METRICS).open("a")
        self._events = Events(folder / "tensorboard", first_step=first_step)

    def __enter__(self) -> "History":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What failed first is what has to be said; a full disk fails here again.
        with contextlib.suppress(*([OSError] if kind else [])):
            self._file.close()
            self._events.close()

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Appends the numbers of a step; JSON has no word for those that are not finite: null."""
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        self._events.add(step, {name: x for name, x in finite.items() if x is not None})

    def add_skipped(self, step: int, records: Sequence[tuple[str, str]]) -> None:
        """Appends id and location of the records of a step that was left out."""
        rows = [{"id": name, "location": place} for name, place in records]
        with (self._folder / SKIPPED).open("a") as file:
            file.write(json.dumps({"step": step, "records": rows}) + "\n")


def read_history(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` or `skipped.jsonl`; none if there is no file.

    A last line that a killed run left torn is left out: its step is run again. So is a line that a
    power cut damaged, for no run depends on it; a warning names it.
    """
    if not path.is_file():
        return []
    kept = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            content = json.loads(line)
            int(content["step"])
        except (ValueError, TypeError, KeyError):
            said = "%s:%d: left out: it is damaged, expected the numbers of a step"
            logging.getLogger(__name__).warning(said, path, number)
        else:
            kept.append(content)
    return kept
