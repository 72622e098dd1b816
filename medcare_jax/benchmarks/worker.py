"""The process of one contender: a job as JSON on standard input, its measurement on the output.

    python -m medcare_jax.benchmarks.worker < job.json

A process of its own, since peak memory can be read but not reset.
"""

import dataclasses
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable

from medcare_jax.benchmarks.job import Contender, Job, Measurement

BUILDERS = {
    "medcare_jax": ("medcare_jax.benchmarks.jax_step", "build"),
    "torch_expert_stack": ("medcare_jax.benchmarks.torch_step", "build_expert_stack"),
    "torch_rank_space": ("medcare_jax.benchmarks.torch_step", "build_rank_space"),
    "peft_lora": ("medcare_jax.benchmarks.torch_step", "build_plain_lora"),
}


def main() -> None:
    """Reads a job, does it, and prints the measurement on the last line."""
    job = Job(**json.load(sys.stdin))
    if job.cores:  # before the import of what starts a thread per core
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.cores])
    print(json.dumps(dataclasses.asdict(measure(job))))


def load(name: str) -> Callable[[Job], Contender]:
    """The function that builds a contender; imports what it needs and no more."""
    module, function = BUILDERS[name]
    return getattr(importlib.import_module(module), function)


def measure(job: Job) -> Measurement:
    """Builds a contender and times its steps."""
    build = load(job.contender)
    imports, start = peak_rss(), time.perf_counter()
    contender = build(job)
    losses = [contender.step() for _ in range(job.warmup)]
    setup, seconds, cpu_seconds = time.perf_counter() - start, [], []
    for _ in range(len(job.rates) - job.warmup):
        start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(contender.step())
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return Measurement(
        losses=losses,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        setup_seconds=setup,
        imports_bytes=imports,
        peak_rss_bytes=peak_rss(),
        peak_device_bytes=contender.peak_device_bytes(),
        device=contender.device,
        trainable=contender.trainable,
    )


def peak_rss() -> int:
    """The most bytes that this process had resident so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
