"""The whole job, so small that it can be killed a hundred times, and what must hold then."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from medcare_jax.checkpoints import find_fault
from medcare_jax.data.icd10 import write_icd10_tasks
from medcare_jax.training.history import read_history
from tests import quick

ROOT = pathlib.Path(__file__).resolve().parents[2]
STAGES = ("mka", "da")
_SIZES = {
    "base.random.num_hidden_layers": 1,
    "data.rows": 1,
    "da.epochs": 2,
    "icd10.make": False,
    "checkpoint.every_steps": 2,
    "evaluation.batch": 1,
    "evaluation.tasks": ("icd10_unseen",),
}


@dataclasses.dataclass
class Warm:
    """A process that starts others; see `warm.py`."""

    process: subprocess.Popen

    def start(self, argv: list[str], log: pathlib.Path) -> int:
        """The pid of a new process with these arguments."""
        print(json.dumps({"argv": argv, "log": str(log)}), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The exit code of the process started last, once it has ended; -9 if it was killed."""
        return int(self.process.stdout.readline())


@contextlib.contextmanager
def warm(cache: pathlib.Path, **environment: str) -> Iterator[Warm]:
    """A process that starts others, with one CPU device and a cache of compiled programs."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "reliability" / "warm.py"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": quick.FLAGS,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **environment,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Warm(process)
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


def write_data(folder: pathlib.Path) -> pathlib.Path:
    """Training and test files, a few dialogues each."""
    write_icd10_tasks(folder, seed=0, mka_knowledge=8, mka_alignment=4, da_alignment=6, test=3)
    return folder


def arguments(data: pathlib.Path, workdir: pathlib.Path, **changes: Any) -> list[str]:
    """The command of `tools/medcare.py` for the tiny job; changes are keys with `__` for a dot."""
    config = _SIZES | {
        "mka.files": (str(data / "1-stage" / "train.json"),),
        "da.files": (str(data / "2-stage" / "train.json"),),
        "evaluation.folder": str(data / "test"),
    }
    config |= {key.replace("__", "."): value for key, value in changes.items()}
    return [
        str(ROOT / "tools" / "medcare.py"),
        f"--config={ROOT / 'configs' / 'tiny.py'}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in config.items()),
    ]


def phase(workdir: pathlib.Path, log: pathlib.Path) -> str:
    """What a run is doing, from what it has said and what lies in its workdir."""
    said = log.read_text(errors="replace") if log.exists() else ""
    headlines = [line for line in said.splitlines() if line.rstrip().endswith("───")]
    now = headlines[-1] if headlines else ""
    if now.startswith("evaluation"):
        return "evaluating"
    if now.startswith("export"):
        return "exporting"
    stage = {"MKA": "mka", "DA:": "da"}.get(now[:3])
    if stage is None:
        return "starting"
    checkpoints = workdir / stage / "checkpoints"
    if stage == "da" and not (workdir / "da" / "metrics.jsonl").exists():
        return "handing over"
    with contextlib.suppress(FileNotFoundError):
        if any(not (path / "manifest.json").exists() for path in _step_folders(checkpoints)):
            return "saving"
    return "training"


def _step_folders(checkpoints: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints of a stage, also those that are being written."""
    return [path for path in checkpoints.iterdir() if path.name[:1].isdigit()]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished job leaves, as digests that do not depend on the clock."""

    adapters: dict[str, str]
    export: dict[str, str]
    histories: dict[str, list[dict[str, Any]]]
    scores: dict[str, Any]


def outcome(workdir: pathlib.Path) -> Outcome:
    """Reads a finished job."""
    return Outcome(
        {stage: _adapters(workdir / stage) for stage in STAGES},
        _files(workdir / "export"),
        {stage: _numbers(workdir / stage) for stage in STAGES},
        {name: _scores(workdir, name) for name in ("base", *STAGES)},
    )


def check_nothing_false(workdir: pathlib.Path, expected: Outcome) -> None:
    """Raises if something in the workdir of a killed run looks whole and is not."""
    for path in workdir.glob("*/checkpoints/*"):
        if (path / "manifest.json").exists():
            assert find_fault(path) is None, path
    if (workdir / "export").exists():
        assert _files(workdir / "export") == expected.export
    for name in expected.scores:
        if (path := workdir / "evaluation" / name / "results.json").exists():
            is_complete = json.loads(path.read_text())["status"] == "complete"
            assert not is_complete or _scores(workdir, name) == expected.scores[name]
    for name in ("config.json", "data_report.json"):
        if (workdir / name).exists():
            json.loads((workdir / name).read_text())
    for path in workdir.glob("report.html"):
        assert path.read_text().rstrip().endswith("</html>")


def _adapters(folder: pathlib.Path) -> str:
    """One digest of all arrays of a stage's last checkpoint, which has to be a good one."""
    steps = [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    last = max(steps, key=lambda path: int(path.name))
    assert find_fault(last) is None
    leaves = json.loads((last / "meta" / "metadata").read_text())["leaves"]
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stored = [name for name, shape in leaves.items() if not re.search(r"\b0[,\]]", shape)]
    how = {name: ocp.ArrayRestoreArgs(sharding=device) for name in stored}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        arrays = checkpointer.restore(
            (last / "state").absolute(), args=ocp.args.PyTreeRestore(restore_args=how)
        )
    # Of the values themselves: orbax does not write the same bytes twice.
    digest = hashlib.sha256(last.name.encode())
    for name in sorted(arrays):
        digest.update(name.encode() + np.asarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _files(folder: pathlib.Path) -> dict[str, str]:
    """sha256 of each file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _numbers(folder: pathlib.Path) -> list[dict[str, Any]]:
    """A stage's history without what the clock decides."""
    clock = ("seconds", "tokens_per_second")
    lines = read_history(folder / "metrics.jsonl")
    return [{name: x for name, x in line.items() if name not in clock} for line in lines]


def _scores(workdir: pathlib.Path, name: str) -> Any:
    """The scores of a state of the model."""
    return json.loads((workdir / "evaluation" / name / "results.json").read_text())["tasks"]


def wait_until(is_true: Callable[[], bool], pid: int, *, seconds: float = 300) -> bool:
    """Whether it became true before the process ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not is_alive(pid):
            return False
        if is_true():
            return True
        time.sleep(0.002)
    raise AssertionError(f"nothing came of it in {seconds} s")


def is_alive(pid: int) -> bool:
    """Whether a process has not ended yet."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def end(pid: int, how: signal.Signals) -> None:
    """Sends a signal to a process, which may have ended just now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)
