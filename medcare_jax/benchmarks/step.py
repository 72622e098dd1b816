"""The train step against PyTorch: same weights, tokens and updates, one process per contender.

| contender | attention | FFN |
|---|---|---|
| `medcare_jax` | KA | KA and NA in the rank-space form: this project's MKA step |
| `torch_expert_stack` | PEFT LoRA | KA and NA as published: all experts' [tokens, e, out] |
| `torch_rank_space` | PEFT LoRA | KA and NA in the rank-space form |
| `peft_lora` | PEFT LoRA | PEFT LoRA of rank r, no experts |

All of PyTorch's use transformers' model, SDPA attention, checkpointing per layer and a fused AdamW.
Contenders take turns and the least of all repeats counts, so that other work on the machine weighs
as little as it can; CPU-seconds count the threads of one process only.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from medcare_jax.benchmarks.job import Job, Measurement
from medcare_jax.benchmarks.peaks import measured_cpu_peak, stated_peak
from medcare_jax.benchmarks.worker import BUILDERS
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import decoder_settings
from medcare_jax.models.flops import useful_flops
from medcare_jax.settings import Settings, SettingsError, make_settings
from medcare_jax.training.optimizer import make_schedule
from medcare_jax.training.stages import MKA

OURS = "medcare_jax"
# What starts from the same numbers and stays with them: plain LoRA learns something else.
SAME_UPDATES = (OURS, "torch_expert_stack", "torch_rank_space")
# Largest difference of losses, nats: float32 rounding, or that of 8-bit significands.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
_LIBRARIES = ("medcare-jax", "jax", "flax", "torch", "transformers", "peft")


class ContenderError(RuntimeError):
    """A contender's process failed; the message ends as its output did."""


def measure(
    config: Mapping[str, Any],
    *,
    contenders: Sequence[str] = tuple(BUILDERS),
    repeats: int = 3,
    steps: int = 3,
    warmup: int = 1,
    cores: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Runs contenders in turn and compares them.

    Args:
      config: A run's config whose base is random; the sections that matter are base, compute,
        adapters, data and mka. Dropout is turned off: masks would differ between contenders.
      contenders: Names of `BUILDERS`.
      repeats: Processes of each contender.
      steps: Timed in each process.
      warmup: Steps before those, at least 1.
      cores: CPU cores for each process; 0 for all.
      report: Told of every process that ended.

    Returns:
      JSON-able: sizes, a row per contender, ratios of ours to each other one, the comparison of
      losses, machine and versions. A contender that failed, for memory say, has an `error`.

    Raises:
      SettingsError: The base is not random.
      ContenderError: Our own process failed.
    """
    plain = json.loads(json.dumps(config))
    plain["adapters"]["dropout"] = 0.0
    settings = make_settings(plain)
    if settings.base.path != "random":
        raise SettingsError(
            f"base.path = {settings.base.path!r}; the benchmark makes its weights: set it to "
            "'random' and base.random to the fields of a config.json, as configs/benchmark_128m.py"
        )
    schedule = make_schedule(settings.mka, warmup + steps)
    rates = tuple(float(schedule(step)) for step in range(warmup + steps))
    jobs = {name: Job(name, plain, rates, warmup, cores) for name in contenders}
    runs, errors = _take_turns(jobs, repeats, report)
    return _result(settings, runs, errors) | {
        "config": plain,
        "repeats": repeats,
        "steps": steps,
        "cores": cores or len(os.sched_getaffinity(0)),
        "machine": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
        "load_average": [round(each, 2) for each in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def _take_turns(
    jobs: Mapping[str, Job], repeats: int, report: Callable[[str], None]
) -> tuple[dict[str, list[Measurement]], dict[str, str]]:
    """What each contender's processes measured, and why those failed that did; ours may not."""
    runs: dict[str, list[Measurement]] = {name: [] for name in jobs}
    errors: dict[str, str] = {}
    for repeat in range(repeats):
        for name in [name for name in jobs if name not in errors]:
            try:
                found = run_process(jobs[name])
                runs[name].append(found)
                report(
                    f"{repeat + 1}/{repeats} {name}: {min(found.seconds):.2f} s, "
                    f"{min(found.cpu_seconds):.2f} CPU-s, {found.peak_rss_bytes / 2**20:.0f} MiB, "
                    f"loss {found.losses[0]:.5f} to {found.losses[-1]:.5f}"
                )
            except ContenderError as error:
                if name == OURS:
                    raise
                errors[name] = str(error)
                report(f"{repeat + 1}/{repeats} {name} failed: {error}")
    return runs, errors


def run_process(job: Job) -> Measurement:
    """One contender in a process of its own.

    Raises:
      ContenderError: It ended with an error.
    """
    done = subprocess.run(
        [sys.executable, "-m", "medcare_jax.benchmarks.worker"],
        input=json.dumps(dataclasses.asdict(job)),
        capture_output=True,
        text=True,
        # Threads that spin while they wait would be counted as work where cores are shared.
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ContenderError(f"{job.contender} ended with exit code {done.returncode}: {last[0]}")
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


def _result(
    settings: Settings, runs: Mapping[str, Sequence[Measurement]], errors: Mapping[str, str]
) -> dict[str, Any]:
    """Rows, ratios and the comparison of losses."""
    decoder = Decoder(
        decoder_settings(settings.base.random), settings.adapters, MKA.components, settings.compute
    )
    tokens = settings.data.rows * settings.data.row_length
    flops = useful_flops(decoder, settings.data.row_length)
    done = {name: found for name, found in runs.items() if found and name not in errors}
    rows = {name: summarise(found, tokens) for name, found in done.items()}
    if OURS in rows:
        rows[OURS]["lora_mfu"] = _lora_mfu(rows[OURS], flops)
    return {
        "tokens_per_step": tokens,
        "useful_flops_per_token": flops,
        "contenders": rows | {name: {"error": error} for name, error in errors.items()},
        "ratios": {name: ratios(rows[OURS], row) for name, row in rows.items() if OURS in rows},
        "losses": compare_losses(done, tolerance=TOLERANCES[settings.compute.dtype]),
    }


def summarise(runs: Sequence[Measurement], tokens: int) -> dict[str, Any]:
    """A contender's row: the fastest step, the largest memory."""
    seconds = min(second for run in runs for second in run.seconds)
    cpu_seconds = min(second for run in runs for second in run.cpu_seconds)
    device_bytes = [run.peak_device_bytes for run in runs if run.peak_device_bytes is not None]
    return {
        "seconds_per_step": seconds,
        "cpu_seconds_per_step": cpu_seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / cpu_seconds,
        "peak_rss_bytes": max(run.peak_rss_bytes for run in runs),
        "imports_rss_bytes": max(run.imports_bytes for run in runs),
        "peak_device_bytes": max(device_bytes, default=None),
        "setup_seconds": min(run.setup_seconds for run in runs),
        "device": runs[0].device,
        "trainable": runs[0].trainable,
        "losses": runs[0].losses,
    }


def ratios(ours: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float | None]:
    """Ours over another's: speeds above 1 and memory below 1 are better."""
    fields = {
        "tokens_per_second": "tokens_per_second",
        "tokens_per_cpu_second": "tokens_per_cpu_second",
        "peak_rss": "peak_rss_bytes",
        "peak_device_memory": "peak_device_bytes",
    }
    return {
        name: ours[field] / other[field] if ours[field] and other[field] else None
        for name, field in fields.items()
    }


def compare_losses(
    runs: Mapping[str, Sequence[Measurement]], *, tolerance: float
) -> dict[str, Any]:
    """Largest differences of losses between contenders, at the start and over the same updates."""
    starts = [run.losses[0] for found in runs.values() for run in found]
    curves = [run.losses for name in SAME_UPDATES for run in runs.get(name, ())]
    at_start = max(starts) - min(starts) if starts else 0.0
    spreads = [max(column) - min(column) for column in zip(*curves, strict=True)]
    after = max(spreads, default=0.0)
    return {
        "largest_difference_at_start": at_start,
        "largest_difference_after_updates": after,
        "tolerance": tolerance,
        "agree": bool(at_start <= tolerance and after <= tolerance),
    }


def _lora_mfu(row: Mapping[str, Any], flops: float) -> dict[str, Any]:
    """Useful FLOP over what the device could do in the time; on a CPU of a measured matmul."""
    if row["device"] == "cpu":
        peak = measured_cpu_peak()
        share = flops * row["tokens_per_cpu_second"] / peak
        return {"value": share, "peak": peak, "of": "a float32 matmul, per CPU-second, measured"}
    peak = stated_peak(row["device"])
    share = flops * row["tokens_per_second"] / peak if peak else None
    return {"value": share, "peak": peak, "of": "the maker's dense bfloat16 figure"}


def table(result: Mapping[str, Any]) -> Table:
    """The result for a screen."""
    columns = ("contender", "s/step", "tok/s", "tok/CPU-s", "peak RSS", "peak device")
    shown = Table(*columns, "ours is faster by", "ours takes memory", title="Train step, MKA")
    for name, row in result["contenders"].items():
        if "error" in row:
            shown.add_row(name, row["error"])
            continue
        against = result["ratios"].get(name, {})
        on_device = row["peak_device_bytes"] is not None
        speed = against.get("tokens_per_second" if on_device else "tokens_per_cpu_second")
        memory = against.get("peak_device_memory" if on_device else "peak_rss")
        shown.add_row(
            name,
            f"{row['seconds_per_step']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['tokens_per_cpu_second']:.0f}",
            f"{row['peak_rss_bytes'] / 2**20:.0f} MiB",
            f"{row['peak_device_bytes'] / 2**30:.1f} GiB" if on_device else "-",
            f"{speed:.2f} x" if speed else "-",
            f"{memory:.2f} x" if memory else "-",
        )
    losses = result["losses"]
    shown.caption = (
        f"losses {'agree' if losses['agree'] else 'DIFFER'}: "
        f"{losses['largest_difference_at_start']:.1e} at the start, "
        f"{losses['largest_difference_after_updates']:.1e} over the same updates"
    )
    return shown
