"""The training loop, the same for both stages: batches in, checkpoints and a history out."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from medcare_jax import distributed
from medcare_jax.checkpoints import Checkpoints
from medcare_jax.data.packing import Batch
from medcare_jax.data.pipeline import TrainingBatches
from medcare_jax.params import Tree
from medcare_jax.sharding import batch_sharding, tree_shardings
from medcare_jax.training.history import SKIPPED, History
from medcare_jax.training.resume import check_resume
from medcare_jax.training.step import Metrics, TrainState, TrainStep


class NonFiniteLossError(ArithmeticError):
    """Loss or gradient were not finite more often than allowed; no checkpoint holds any of it."""


class Progress(Protocol):
    """What the loop tells a progress display."""

    def begin(self, step: int) -> None:
        """Says how many steps were done by earlier runs."""

    def update(self, step: int, numbers: dict[str, float]) -> None:
        """Shows the numbers of a finished step."""


@dataclasses.dataclass(frozen=True)
class StageRun:
    """Everything that a stage's loop needs.

    Attributes:
      folder: Where checkpoints and history go.
      step: The train step.
      schedule: Learning rate by step, for the record.
      frozen: Base and the adapter trees that do not learn, placed on the mesh.
      batches: The stage's data.
      total_steps: Where the stage ends.
      every_steps: Between checkpoints.
      keep: Checkpoints that stay.
      grace_seconds: What a machine that is taken away leaves between SIGTERM and the end.
      max_skipped: Steps that may be left out because loss, gradient or update is not finite.
      meta: Facts about the run that are saved with each checkpoint.
    """

    folder: pathlib.Path
    step: TrainStep
    schedule: optax.Schedule
    frozen: dict[str, Tree]
    batches: TrainingBatches
    total_steps: int
    every_steps: int
    keep: int
    grace_seconds: float
    max_skipped: int
    meta: dict[str, Any]


def run_stage(run: StageRun, state: TrainState, mesh: Mesh, progress: Progress) -> TrainState:
    """Trains from the newest good checkpoint, or from `state`, to the stage's last step.

    The result is the same, bit for bit, however often the run was stopped and started again on
    the same devices: the batch of a step and its dropout depend on the step's number alone.

    Args:
      run: What to train with.
      state: The state before step 1. It is given away: do not use its arrays again.
      mesh: The devices; must be the current mesh (`jax.set_mesh`).
      progress: Told of each finished step.

    Returns:
      The state after the last step.

    Raises:
      NonFiniteLossError: More steps than `max_skipped` gave no finite loss and gradient; names the
        file that lists the records of each.
      StoppedEarly: SIGTERM came on some host; everything is saved.
      CheckpointError: The checkpoint there does not fit this run.
    """
    shardings = tree_shardings(mesh, state)
    state = jax.device_put(state, shardings)
    with Checkpoints(run.folder / "checkpoints", keep=run.keep) as checkpoints:
        if (step_saved := checkpoints.latest_step()) is not None:
            check_resume(checkpoints.read_meta(step_saved)["meta"], run.meta)
        restored = checkpoints.restore(_abstract(state, shardings))
        state = restored.state if restored else state
        first = restored.step if restored else 0
        progress.begin(first)
        if first == run.total_steps:
            return state
        step = jit_step(run.step, shardings, tree_shardings(mesh, run.frozen), mesh)
        is_writer = distributed.is_first()  # one record, however many hosts share the folder
        opened = History(run.folder, first_step=first) if is_writer else contextlib.nullcontext()
        with opened as history:
            return _train(run, step, state, first, mesh, checkpoints, history, progress)


def jit_step(step: TrainStep, state: Any, frozen: Any, mesh: Mesh) -> Any:
    """The compiled step; arguments are trees of shardings. The state is donated."""
    replicated = NamedSharding(mesh, P())
    return jax.jit(
        step,
        in_shardings=(state, frozen, batch_sharding(mesh)),
        out_shardings=(state, replicated),
        donate_argnums=0,
    )


def _train(
    run: StageRun,
    step: Any,
    state: TrainState,
    first: int,
    mesh: Mesh,
    checkpoints: Checkpoints,
    history: History | None,
    progress: Progress,
) -> TrainState:
    """The loop proper. A step's numbers are fetched while the next one runs."""
    reader = _Reader(run, history, progress, skipped=int(jax.device_get(state.skipped)))
    for number, batch in enumerate(device_batches(run.batches, mesh, first), start=first + 1):
        state, metrics = step(state, run.frozen, batch)
        reader.read_pending()
        reader.pending = (number, metrics)
        stops = distributed.must_stop()
        checkpoints.sign_finished()
        is_last = number == run.total_steps
        if is_last or stops or number % run.every_steps == 0:
            reader.read_pending()
            reader.compare_with_grace(checkpoints.seconds)
            checkpoints.save(number, state, run.meta)
        if stops and not is_last:
            checkpoints.wait()
            raise distributed.StoppedEarly(
                f"stopped after step {number} of {run.total_steps}; saved"
            )
        if is_last:
            break
    checkpoints.wait()
    return state


class _Reader:
    """Fetches a step's metrics, checks them, and passes them on."""

    def __init__(
        self, run: StageRun, history: History | None, progress: Progress, *, skipped: int
    ) -> None:
        self.pending: tuple[int, Metrics] | None = None
        self._skipped = skipped  # by earlier steps
        self._step_seconds, self._is_grace_told = 0.0, False
        self._run, self._history, self._progress = run, history, progress
        self._clock = time.perf_counter()

    def read_pending(self) -> None:
        """Waits for the step whose metrics are pending, if any."""
        if self.pending is None:
            return
        number, metrics = self.pending
        self.pending = None
        numbers = {k: float(v) for k, v in jax.device_get(metrics)._asdict().items()}
        now = time.perf_counter()
        # The optimiser has not counted the steps that were left out before this one.
        numbers["learning_rate"] = float(self._run.schedule(number - 1 - self._skipped))
        numbers["seconds"] = now - self._clock
        numbers["tokens_per_second"] = numbers["tokens"] / numbers["seconds"]
        self._clock, self._step_seconds = now, numbers["seconds"]
        if self._history is not None:
            self._history.add(number, numbers)
        self._progress.update(number, numbers)
        # The step alone knows why it left a batch out: an update may be no number where loss and
        # gradient are.
        if numbers["skipped"] > self._skipped:
            self._skipped = int(numbers["skipped"])
            self._note_skipped(number, numbers)

    def compare_with_grace(self, save_seconds: float | None) -> None:
        """Warns, once, if a stop would need more than half of the time that it is given."""
        needed = self._step_seconds + (save_seconds or 0.0)
        if save_seconds is None or self._is_grace_told or needed <= self._run.grace_seconds / 2:
            return
        self._is_grace_told = True
        logging.getLogger(__name__).warning(
            "a stop waits for a step (%.1f s) and a save (%.1f s): more than half of the %.1f s "
            "of checkpoint.grace_seconds. If the machine is taken away before both are done, the "
            "run goes on from the checkpoint before: save to a faster disk, make data.rows "
            "smaller, or lower checkpoint.every_steps so that less is lost",
            self._step_seconds,
            save_seconds,
            self._run.grace_seconds,
        )

    def _note_skipped(self, number: int, numbers: dict[str, float]) -> None:
        """Writes down whose batch gave no number; raises if that was once too often."""
        if self._history is not None:
            self._history.add_skipped(number, self._run.batches.record_ids(number - 1))
        listed = self._run.folder / SKIPPED
        what = (
            f"step {number}: loss {numbers['loss']}, gradient norm {numbers['grad_norm']}; "
            "expected finite numbers, and a finite update. The records of its batch are listed in "
            f"{listed}"
        )
        if numbers["skipped"] <= self._run.max_skipped:
            logging.getLogger(__name__).warning("%s; the step is left out", what)
            return
        raise NonFiniteLossError(
            f"{what}. {int(numbers['skipped'])} steps were left out, {self._run.max_skipped} may "
            "be (max_skipped of the stage). Look at these records, lower the learning rate, or "
            "raise max_skipped; the last checkpoint is good, and the same command goes on from it"
        )


def device_batches(batches: TrainingBatches, mesh: Mesh, first: int) -> Iterator[Batch]:
    """Global batches on the mesh, the next one already on its way while one is used."""
    sharding = batch_sharding(mesh)
    shape = (batches.report.rows, batches.report.row_length)
    # Whatever axes lie between processes: a process reads the rows that its devices hold.
    held = sharding.addressable_devices_indices_map(shape).values()
    rows = sorted({row for index in held for row in range(*index[0].indices(shape[0]))})
    ahead: Batch | None = None
    for batch in batches.iterate(first, rows=rows):
        placed = jax.tree.map(functools.partial(_place_rows, rows, shape, sharding), batch)
        if ahead is not None:
            yield ahead
        ahead = placed
    if ahead is not None:
        yield ahead


def _place_rows(
    rows: list[int], shape: tuple[int, int], sharding: NamedSharding, local: np.ndarray
) -> jax.Array:
    """A global array, of which `local` holds the sorted `rows` that this process needs."""

    def part(index: tuple[slice, ...]) -> np.ndarray:
        begin, end, _ = index[0].indices(shape[0])
        place = rows.index(begin)
        return local[place : place + end - begin]

    return jax.make_array_from_callback(shape, sharding, part)


def _abstract(state: TrainState, shardings: Any) -> Any:
    """Shapes, dtypes and shardings of a state."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )
