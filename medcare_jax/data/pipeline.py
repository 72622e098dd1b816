"""The stream of training batches as a pure function of files, seed and settings.

Everything is tokenised and planned once, before training. From then on batch number i is the same
whoever asks, when, and on how many hosts: the position of a run is that one number, and its
`fingerprint` says whether it still counts the same stream.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np
from jaxtyping import Int64
from transformers import PreTrainedTokenizerFast

from medcare_jax.data.examples import ExampleReader, Examples, FileReport
from medcare_jax.data.packing import Batch, pack_row, plan_rows, stack_rows

__all__ = ["DataReport", "TrainingBatches", "make_batches"]

_PREFETCH = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


@dataclass(frozen=True)
class DataReport:
    """What a run trains on; ``dataclasses.asdict`` of it is JSON.

    Attributes:
      files: One report a file.
      targets: Which tokens are learnt, see `medcare_jax.data.chat`.
      over_long: ``"drop"`` or ``"cut"``.
      row_length: Tokens in a row.
      rows: Rows in a global batch.
      epochs: Passes over the files.
      seed: Of order and choice.
      num_rows: Rows of all epochs.
      num_batches: Global batches of all epochs.
      real_token_share: Share of the tokens of those rows that is not padding.
      fingerprint: Digest of the stream.
    """

    files: tuple[FileReport, ...]
    targets: str
    over_long: str
    row_length: int
    rows: int
    epochs: int
    seed: int
    num_rows: int
    num_batches: int
    real_token_share: float
    fingerprint: str


class TrainingBatches:
    """The global batches of a run by number; made by `make_batches`.

    Attributes:
      report: What is in them and what is not.
      num_batches: How many there are; the last one may end in rows of padding.
      fingerprint: Digest of all tokens, marks and their order.
    """

    def __init__(self, examples: Examples, plan: list[tuple[int, ...]], report: DataReport):
        self._examples, self._plan = examples, plan
        self.report = report
        self.num_batches, self.fingerprint = report.num_batches, report.fingerprint

    @property
    def longest(self) -> int:
        """Tokens of the longest dialogue, which decide the positions: each counts its own."""
        return int(self._examples.lengths.max())

    def batch(self, index: int) -> Batch:
        """Returns global batch number `index`, arrays ``[b, t]`` with b the global rows.

        Raises:
          IndexError: There is no such batch.
        """
        return self._rows(index, range(self.report.rows))

    def record_ids(self, index: int) -> tuple[tuple[str, str], ...]:
        """Returns id and location of every dialogue in a batch, row by row.

        Raises:
          IndexError: There is no such batch.
        """
        plan = self._row_plan(index)
        return tuple(self._examples.names[number] for row in plan for number in row)

    def iterate(self, start: int = 0, *, rows: Sequence[int] | None = None) -> Iterator[Batch]:
        """Returns some rows of every batch from `start` on, prefetched in threads.

        Threads instead of worker processes: the order cannot depend on their number.

        Args:
          start: Number of the first batch, the position that a checkpoint keeps.
          rows: Which rows of each global batch, in this order; those of one process's devices.
            All by default. What is not asked for is not put together.

        Raises:
          ValueError: There are no such rows, or `start` lies outside.
        """
        count = self.report.rows
        rows = tuple(range(count) if rows is None else rows)
        if not rows or not all(0 <= row < count for row in rows):
            raise ValueError(f"expected rows from 0 to {count - 1}, at least one, got {list(rows)}")
        if not 0 <= start <= self.num_batches:
            raise ValueError(f"expected a start from 0 to {self.num_batches}, got {start}")
        source = _SomeRows(self, rows)
        return iter(grain.MapDataset.source(source)[start:].to_iter_dataset(_PREFETCH))

    def _row_plan(self, index: int) -> list[tuple[int, ...]]:
        """The examples of each row of a batch; nothing in the rows behind the last."""
        if not 0 <= index < self.num_batches:
            raise IndexError(f"expected a batch from 0 to {self.num_batches - 1}, got {index}")
        first = index * self.report.rows
        rows = self._plan[first : first + self.report.rows]
        return rows + [()] * (self.report.rows - len(rows))

    def _rows(self, index: int, chosen: Sequence[int]) -> Batch:
        """Some rows of a batch."""
        plan = self._row_plan(index)
        return stack_rows(
            [
                pack_row([self._examples[number] for number in plan[row]], self.report.row_length)
                for row in chosen
            ]
        )


def make_batches(
    tokenizer: PreTrainedTokenizerFast,
    *,
    files: Sequence[str | Path],
    weights: Sequence[float] = (),
    row_length: int,
    rows: int,
    epochs: int,
    targets: str,
    over_long: str,
    on_bad_record: str,
    seed: int,
    show_progress: bool = False,
) -> TrainingBatches:
    """Reads, tokenises, mixes, shuffles and packs; returns the batches of a run.

    Args:
      tokenizer: A fast tokenizer.
      files: What `medcare_jax.data.records.open_records` reads.
      weights: How often each file's examples are seen in an epoch, one number a file; 2.5 is twice
        each and a half of them, drawn anew every epoch, once more. None given: once each.
      row_length: Tokens in a row.
      rows: Rows in a global batch.
      epochs: Passes over the files. The last batch of all is filled up with rows of padding.
      targets: ``"assistant"`` or ``"reference"``, see `medcare_jax.data.chat`.
      over_long: What is done with examples longer than a row: ``"drop"`` leaves them out, ``"cut"``
        keeps the first `row_length` tokens. Both are counted.
      on_bad_record: ``"stop"`` or ``"skip"``.
      seed: Of order and choice, from 0 on.
      show_progress: Whether to draw a bar on the terminal.

    Raises:
      RecordError: A bad record with ``"stop"``, or a file without a good one.
      ValueError: Settings that do not fit together, a weight that chooses none of a file's
        examples, or nothing left to train on.
    """
    weights = tuple(weights) or (1.0,) * len(files)
    _check_settings(files, weights, row_length, rows, epochs, over_long, seed)
    reader = ExampleReader(tokenizer, targets, row_length, over_long, on_bad_record, show_progress)
    examples, reports = _read(reader, files, weights, row_length)
    counts = [report.kept for report in reports]
    plan: list[tuple[int, ...]] = []
    for epoch in range(epochs):
        plan += _plan_epoch(examples.lengths, counts, weights, row_length, (seed, epoch))
    placed = sum(int(examples.lengths[list(row)].sum()) for row in plan)
    report = DataReport(
        files=reports,
        targets=targets,
        over_long=over_long,
        row_length=row_length,
        rows=rows,
        epochs=epochs,
        seed=seed,
        num_rows=len(plan),
        num_batches=math.ceil(len(plan) / rows),
        real_token_share=placed / (len(plan) * row_length),
        fingerprint=_fingerprint(examples, plan, row_length, rows),
    )
    return TrainingBatches(examples, plan, report)


class _SomeRows:
    """The same rows of every batch, as grain's sources are: by number."""

    def __init__(self, batches: TrainingBatches, rows: tuple[int, ...]):
        self.batches, self.rows = batches, rows

    def __len__(self) -> int:
        return self.batches.num_batches

    def __getitem__(self, index: int) -> Batch:
        return self.batches._rows(int(index), self.rows)


def _read(
    reader: ExampleReader, files: Sequence[str | Path], weights: Sequence[float], row_length: int
) -> tuple[Examples, tuple[FileReport, ...]]:
    """The examples of all files, and the account of each."""
    examples = Examples()
    reports = tuple(
        reader.read(path, examples, weight=weight)
        for path, weight in zip(files, weights, strict=True)
    )
    if not len(examples):
        raise ValueError(_nothing_left(reports, row_length))
    _check_weights(reports)
    examples.join()
    return examples, reports


def _plan_epoch(
    lengths: Int64[np.ndarray, " examples"],
    counts: Sequence[int],
    weights: Sequence[float],
    row_length: int,
    seed: tuple[int, int],
) -> list[tuple[int, ...]]:
    """The rows of one epoch in their order."""
    random = np.random.default_rng(seed)
    chosen, first = [], 0
    for count, weight in zip(counts, weights, strict=True):
        whole, some = _times(count, weight)
        drawn = random.permutation(count)[:some]
        chosen += [first + np.tile(np.arange(count), whole), first + drawn]
        first += count
    order = random.permutation(np.concatenate(chosen))
    rows = plan_rows(lengths[order].tolist(), row_length)
    return [tuple(order[list(rows[place])].tolist()) for place in random.permutation(len(rows))]


def _times(count: int, weight: float) -> tuple[int, int]:
    """How often an epoch has all of a file's examples, and how many it has once more."""
    return int(weight), round((weight - int(weight)) * count)


def _check_weights(reports: Sequence[FileReport]) -> None:
    """Raises if a file has examples of which its weight chooses none, in no epoch.

    Raises:
      ValueError: Names file, weight and number of examples.
    """
    for report in reports:
        if report.kept and not any(_times(report.kept, report.weight)):
            raise ValueError(
                f"{report.path}: weight {report.weight:g} chooses none of its {report.kept} "
                f"examples; raise it above {0.5 / report.kept:.2g}, or leave the file out"
            )


def _fingerprint(
    examples: Examples, plan: list[tuple[int, ...]], row_length: int, rows: int
) -> str:
    """Digest of the stream itself, so that whatever changes it is noticed, versions included."""
    digest = hashlib.sha256(f"{row_length} {rows}".encode())
    row_sizes = np.array([len(row) for row in plan], np.int64)
    order = np.array([number for row in plan for number in row], np.int64)
    for part in (examples.tokens, examples.is_target, examples.lengths, row_sizes, order):
        digest.update(part.tobytes())
    return digest.hexdigest()


def _check_settings(
    files: Sequence[str | Path],
    weights: Sequence[float],
    row_length: int,
    rows: int,
    epochs: int,
    over_long: str,
    seed: int,
) -> None:
    """Refuses settings that cannot work."""
    if not files or len(set(map(str, files))) < len(files):
        raise ValueError("expected one file or more, each once; use weights to see one more often")
    if len(weights) != len(files):
        raise ValueError(f"expected {len(files)} weights, one a file, got {len(weights)}")
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"expected weights over 0, got {list(weights)}; leave a file out instead")
    if min(row_length - 1, rows, epochs, seed + 1) < 1:
        raise ValueError(
            "expected row_length of 2 or more, rows and epochs of 1 or more, seed of 0 or more, "
            f"got {row_length}, {rows}, {epochs}, {seed}"
        )
    if over_long not in ("drop", "cut"):
        raise ValueError(f"over_long must be 'drop' or 'cut', got {over_long!r}")


def _nothing_left(reports: Sequence[FileReport], row_length: int) -> str:
    """Says where all examples went."""
    over_long = sum(report.over_long for report in reports)
    without_target = sum(report.without_target for report in reports)
    return (
        f"nothing is left to train on: {over_long} examples are longer than row_length = "
        f"{row_length}, {without_target} have no target token left; raise row_length"
    )
