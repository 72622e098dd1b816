"""What packing is worth: real tokens in the rows, and useful tokens per second of the step.

Packed rows are compared with the reference's batches: four dialogues, padded to the longest. Both
go through the same step, forward and backward without the optimiser, whose cost does not depend
on them. Packed rows hold dialogues of the real lengths, since attention may leave out what is
between them. A padded batch's time is measured at five lengths and interpolated for the others: a
program for each of a thousand shapes would only measure the compiler.
"""

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from rich.table import Table

from medcare_jax.benchmarks.jax_step import make_params
from medcare_jax.data.chat import Example
from medcare_jax.data.examples import ExampleReader, Examples, FileReport
from medcare_jax.data.packing import Batch, pack_row, plan_rows, stack_rows
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import decoder_settings
from medcare_jax.params import BASE, split
from medcare_jax.settings import Settings, make_settings
from medcare_jax.sharding import make_mesh
from medcare_jax.training.stages import MKA
from medcare_jax.training.step import make_state, make_train_step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GROUP = 4  # dialogues of the reference's micro-batch
DEVICES = 4  # of the reference's run, which wait for each other
_SHAPES = 5
_Report = Callable[[str], None]
_Rows = Sequence[Sequence[int]]  # the lengths of the dialogues of each row


def measure(
    config: Mapping[str, Any],
    *,
    data: pathlib.Path,
    tokenizer: "PreTrainedTokenizerFast",
    repeats: int = 3,
    is_timed: bool = True,
    report: _Report = lambda line: None,
) -> dict[str, Any]:
    """Packs a file's dialogues, pads the same ones, and times both.

    Args:
      config: A run's config; its data section says how long rows are. Timing needs a random base.
      data: Dialogues.
      tokenizer: Of the model that they are for.
      repeats: Times that each shape is timed; the least counts.
      is_timed: Whether steps are timed, or tokens counted only.
      report: Told of every shape that was timed.

    Returns:
      JSON-able shares and, if timed, useful tokens per second and per CPU-second.
    """
    plain = dict(config) | {"adapters": dict(config["adapters"]) | {"dropout": 0.0}}
    settings = make_settings(plain)
    lengths, counts = _read_lengths(settings, data, tokenizer)
    order = np.random.default_rng(settings.seed).permutation(lengths)
    row_length = settings.data.row_length
    rows = [order[list(row)].tolist() for row in plan_rows(order.tolist(), row_length)]
    result: dict[str, Any] = {
        "dialogues": counts.kept,
        "over_long": counts.over_long,
        "row_length": row_length,
        "mean_tokens": float(lengths.mean()),
        "real_share_packed": packed_share(rows, row_length),
        "real_share_padded": padded_share(order, GROUP),
        "real_share_padded_of_waiting_devices": padded_share(order, GROUP * DEVICES),
    }
    if is_timed:
        result |= _time(settings, order, rows, repeats, report)
    return result


def packed_share(rows: _Rows, row_length: int) -> float:
    """Share of real tokens in packed rows.

    >>> packed_share([[4, 4], [5]], 10)
    0.65
    """
    return sum(map(sum, rows)) / (len(rows) * row_length)


def padded_share(lengths: np.ndarray, group: int) -> float:
    """Share of real tokens when each group is padded to its longest; a rest is left out.

    >>> padded_share(np.array([1, 3, 2, 2, 9]), 2)
    0.8
    """
    groups = lengths[: len(lengths) // group * group].reshape(-1, group)
    return float(groups.sum() / (groups.max(axis=1).sum() * group))


def padded_seconds(longest: np.ndarray, timed: Mapping[int, float]) -> float:
    """Time of all padded batches, linear between the lengths that were timed.

    >>> padded_seconds(np.array([10, 15, 20]), {10: 1.0, 20: 3.0})
    6.0
    """
    known = sorted(timed)
    return float(np.interp(longest, known, [timed[length] for length in known]).sum())


def _read_lengths(
    settings: Settings, data: pathlib.Path, tokenizer: "PreTrainedTokenizerFast"
) -> tuple[np.ndarray, FileReport]:
    """Tokens of each dialogue that fits into a row, and the account of the others.

    Raises:
      ValueError: Too few fit for the reference's batches.
    """
    examples, wanted = Examples(), settings.data
    reader = ExampleReader(
        tokenizer, wanted.targets, wanted.row_length, "drop", wanted.on_bad_record, False
    )
    counts = reader.read(data, examples, weight=1.0)
    if counts.kept < GROUP * DEVICES:  # none at all could not even be joined
        raise ValueError(
            f"{data} has {counts.kept} dialogues of at most {wanted.row_length} tokens; "
            f"expected at least {GROUP * DEVICES}, the reference's {DEVICES} batches of {GROUP}"
        )
    examples.join()
    return examples.lengths, counts


def _time(
    settings: Settings, order: np.ndarray, rows: _Rows, repeats: int, report: _Report
) -> dict[str, Any]:
    """Useful tokens per second of packed rows and of padded batches, and their ratio."""
    groups = order[: len(order) // GROUP * GROUP].reshape(-1, GROUP)
    longest = groups.max(axis=1)
    lengths = sorted({int(each) for each in np.quantile(longest, np.linspace(0, 1, _SHAPES))})
    row_length = settings.data.row_length
    # As training meets them: a window's first rows hold its longest dialogues.
    places = np.random.default_rng(settings.seed).permutation(len(rows))[: settings.data.rows]
    batches = [_batch([[length]] * GROUP, length) for length in lengths]
    batches.append(_batch([rows[place] for place in places], row_length))
    seconds, cpu_seconds = _time_batches(settings, batches, repeats, report)
    result = {}
    for name, found in (("second", seconds), ("cpu_second", cpu_seconds)):
        packed = packed_share(rows, row_length) * batches[-1].tokens.size / found[-1]
        padded = groups.sum() / padded_seconds(longest, dict(zip(lengths, found, strict=False)))
        result[f"useful_tokens_per_{name}_packed"] = float(packed)
        result[f"useful_tokens_per_{name}_padded"] = float(padded)
        result[f"ratio_per_{name}"] = float(packed / padded)
    return result


def _time_batches(
    settings: Settings, batches: list[Batch], repeats: int, report: _Report
) -> tuple[list[float], list[float]]:
    """Least seconds and CPU-seconds of a step on each batch, the batches taking turns."""
    decoder = Decoder(
        decoder_settings(settings.base.random), settings.adapters, MKA.components, settings.compute
    )
    trees = split(make_params(decoder, settings, make_mesh(settings.mesh)))
    frozen = {BASE: trees.pop(BASE)}
    optimizer = optax.with_extra_args_support(optax.set_to_zero())
    state = make_state(trees, optimizer, jax.random.key(settings.seed), {})
    chunk = settings.compute.loss_chunk
    step = jax.jit(make_train_step(decoder, optimizer, None, accumulation=1, loss_chunk=chunk))
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in batches]
    for repeat in range(repeats + 1):  # the first one compiles
        for batch, (seconds, cpu_seconds) in zip(batches, found, strict=True):
            start, cpu_start = time.perf_counter(), time.process_time()
            jax.block_until_ready(step(state, frozen, batch))
            if repeat:
                seconds.append(time.perf_counter() - start)
                cpu_seconds.append(time.process_time() - cpu_start)
                shown = f"{seconds[-1]:.2f} s, {cpu_seconds[-1]:.2f} CPU-s"
                report(f"{repeat}/{repeats} {batch.tokens.shape}: {shown}")
    return [min(seconds) for seconds, _ in found], [min(seconds) for _, seconds in found]


def _batch(rows: _Rows, row_length: int) -> Batch:
    """Rows of dialogues of these lengths; a step's time does not depend on what they say."""
    dialogue = lambda length: Example(np.zeros(length, np.int32), np.ones(length, bool))
    return stack_rows([pack_row([*map(dialogue, lengths)], row_length) for lengths in rows])


def table(result: Mapping[str, Any]) -> Table:
    """The result for a screen."""
    rows = {
        "real tokens": ("real_share_packed", "real_share_padded"),
        "useful tokens per second": (
            "useful_tokens_per_second_packed",
            "useful_tokens_per_second_padded",
        ),
        "useful tokens per CPU-second": (
            "useful_tokens_per_cpu_second_packed",
            "useful_tokens_per_cpu_second_padded",
        ),
    }
    title = f"Packing, rows of {result['row_length']} tokens"
    shown = Table("", "packed", f"padded to the longest of {GROUP}", "ratio", title=title)
    for label, (packed, padded) in rows.items():
        if packed in result:
            ratio = result[packed] / result[padded]
            shown.add_row(label, f"{result[packed]:.4g}", f"{result[padded]:.4g}", f"{ratio:.2f} x")
    share = result["real_share_padded_of_waiting_devices"]
    shown.caption = f"real tokens when {DEVICES} devices wait for the longest of all: {share:.3f}"
    return shown
