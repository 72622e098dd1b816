"""The record of a stage, one line of numbers per step, that survives kill and resume."""

import json
import pathlib
from collections.abc import Mapping
from types import TracebackType

from medcare_jax.files import write_text


class History:
    """`metrics.jsonl` and TensorBoard events of one stage.

    Lines after the step that the run goes on from belong to work that was lost; they are taken
    out when the file is opened, so each step stands there once. Holds numbers only, no text of
    any record.
    """

    def __init__(self, folder: pathlib.Path, *, first_step: int) -> None:
        """Opens the record; the next line to come is that of `first_step` + 1."""
        # Imported by those who write: it takes PyTorch along, two seconds where that is installed.
        import tensorboardX

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = [line for line in read_history(path) if line["step"] <= first_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._events = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"), purge_step=first_step + 1
        )

    def __enter__(self) -> "History":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._events.close()

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Appends the numbers of a step."""
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._events.add_scalar(name, value, step)


def read_history(path: pathlib.Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`; none if there is no file.

    A last line that a killed run left torn is left out: its step is run again.
    """
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
