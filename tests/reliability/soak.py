"""Trains for a long time, alone and under repeated kills, and says what became of memory and speed.

    python -m tests.reliability.soak --minutes=90

Half of the time goes to a run that is left alone, half to the same run killed again and again.
Prints one object of JSON.
"""

import dataclasses
import json
import pathlib
import random
import signal
import tempfile
import time

import numpy as np
from absl import app, flags

from tests.reliability import tiny_job

_MINUTES = flags.DEFINE_float("minutes", 90.0, "How long it may take, about.")
KILLS = 8
KEEP = 3
_STEPS_PER_MINUTE = 700  # of the tiny job, about, on one x86-64 core
_PAUSE = 0.5


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a process held at some moment."""

    seconds: float
    mebibytes: float
    files: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Soak:
    """What came of it.

    Attributes:
      steps: Of the first stage.
      minutes: That it took in all.
      growth_percent: Of resident memory over the part looked at, by the line of least squares.
      mebibytes: Mean resident memory.
      files_first: Open files when the part looked at began.
      files_last: And at its end.
      speed_percent: Steps a second in the last quarter, in percent of the first quarter looked at.
      kills: How often the second run was killed.
      folders: Most checkpoints that were kept.
      is_same: Whether both runs left the same losses, adapters and export.
    """

    steps: int
    minutes: float
    growth_percent: float
    mebibytes: float
    files_first: int
    files_last: int
    speed_percent: float
    kills: int
    folders: int
    is_same: bool


def soak(folder: pathlib.Path, minutes: float) -> Soak:
    """Both runs below a folder."""
    begin, steps = time.monotonic(), int(minutes / 2 * _STEPS_PER_MINUTE)
    data = tiny_job.write_data(folder / "data")
    job = {"mka__epochs": steps, "mka__max_steps": steps, "checkpoint__every_steps": 50}
    with tiny_job.warm(folder / "cache") as start:
        argv = tiny_job.arguments(data, folder / "alone", **job)
        pid = start.start(argv, folder / "log")
        samples = watch(pid, folder / "alone", steps)
        _expect(start.wait(), folder / "log")
        argv = tiny_job.arguments(data, folder / "killed", **job)
        kills = _kill_often(start, argv, folder, steps)
    first, last = len(samples) // 4, len(samples)
    part = samples[first:last]  # behind compiling and the first saves
    seconds, memory = ([getattr(x, name) for x in part] for name in ("seconds", "mebibytes"))
    slope = np.polyfit(seconds, memory, 1)[0]
    return Soak(
        steps=steps,
        minutes=(time.monotonic() - begin) / 60,
        growth_percent=float(100 * slope * (seconds[-1] - seconds[0]) / np.mean(memory)),
        mebibytes=float(np.mean(memory)),
        files_first=part[0].files,
        files_last=part[-1].files,
        speed_percent=100 * _speed(part[-len(part) // 3 :]) / _speed(part[: len(part) // 3]),
        kills=kills,
        folders=max(_count(folder / name) for name in ("alone", "killed")),
        is_same=tiny_job.outcome(folder / "alone") == tiny_job.outcome(folder / "killed"),
    )


def watch(pid: int, workdir: pathlib.Path, steps: int) -> list[Sample]:
    """What a process holds, twice a second, as long as it is in its first stage."""
    samples, begin = [], time.monotonic()
    while tiny_job.is_alive(pid) and (done := _steps(workdir)) < steps:
        if done:
            samples.append(_look(pid, time.monotonic() - begin, done))
        time.sleep(_PAUSE)
    return samples


def _look(pid: int, seconds: float, steps: int) -> Sample:
    """One sample."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    kibibytes = int(status.split("VmRSS:")[1].split()[0])
    files = len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))
    return Sample(seconds, kibibytes / 1024, files, steps)


def _kill_often(start: tiny_job.Warm, argv: list[str], folder: pathlib.Path, steps: int) -> int:
    """Runs the job to its end, killed about every so many steps; returns how often it was."""
    chance, kills = random.Random(5), 0
    while True:
        goal = (kills + chance.random()) * steps / KILLS
        pid = start.start(argv, folder / "log")
        if kills == KILLS or not tiny_job.wait_until(
            lambda goal=goal: _steps(folder / "killed") > goal, pid, seconds=7200
        ):
            _expect(start.wait(), folder / "log")
            return kills
        tiny_job.end(pid, signal.SIGKILL)
        _expect(start.wait(), folder / "log", expected=-signal.SIGKILL)
        kills += 1


def _expect(code: int, log: pathlib.Path, *, expected: int = 0) -> None:
    """Raises unless a process ended as it should."""
    if code != expected:
        raise RuntimeError(f"exit code {code}, expected {expected}: {log.read_text()[-2000:]}")


def _steps(workdir: pathlib.Path) -> int:
    """How many steps of the first stage were recorded."""
    path = workdir / "mka" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _speed(samples: list[Sample]) -> float:
    """Steps a second."""
    return (samples[-1].steps - samples[0].steps) / (samples[-1].seconds - samples[0].seconds)


def _count(workdir: pathlib.Path) -> int:
    """Checkpoints of the first stage."""
    return len([x for x in (workdir / "mka" / "checkpoints").iterdir() if x.name.isdigit()])


def main(_: list[str]) -> None:
    """Prints what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(dataclasses.asdict(soak(pathlib.Path(folder), _MINUTES.value))))


if __name__ == "__main__":
    app.run(main)
