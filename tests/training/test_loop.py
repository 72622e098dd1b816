"""A run that is stopped, killed or broken, against one that is left alone."""

import dataclasses
import itertools
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax import distributed
from medcare_jax.checkpoints import CheckpointError, find_fault
from medcare_jax.distributed import StoppedEarly
from medcare_jax.params import BASE, flatten, unflatten
from medcare_jax.training.history import read_history
from medcare_jax.training.loop import NonFiniteLossError, run_stage
from tests.training.runs import SECRET, state_digest, tiny_mesh, tiny_run

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Steps(list):
    """A progress display that remembers which steps it was told of."""

    def begin(self, step):
        pass

    def update(self, step, numbers):
        assert all(isinstance(value, float) for value in numbers.values())
        self.append(step)


@pytest.fixture
def stop_after(monkeypatch):
    """Makes the process be told to end after so many steps."""

    def install(steps):
        calls = itertools.count(1)
        monkeypatch.setattr(distributed, "must_stop", lambda: next(calls) == steps)

    return install


def go(folder, progress=None, **changes):
    """Runs the tiny stage, or goes on with it."""
    mesh = tiny_mesh()
    run, state = tiny_run(folder, mesh, **changes)
    with jax.set_mesh(mesh):
        return run_stage(run, state, mesh, Steps() if progress is None else progress)


def numbers_in(folder):
    """The history without what depends on the clock."""
    lines = read_history(folder / "metrics.jsonl")
    clock = ("seconds", "tokens_per_second")
    return [{name: x for name, x in line.items() if name not in clock} for line in lines]


def saved_steps(folder):
    """Steps of the checkpoints, all of which must be good."""
    folders = [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    assert [find_fault(path) for path in folders] == [None] * len(folders)
    return sorted(int(path.name) for path in folders)


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """Folder, digest, and shown steps of a run that nothing happened to."""
    folder, shown = tmp_path_factory.mktemp("alone") / "da", Steps()
    return folder, state_digest(go(folder, shown)), shown


def test_every_step_is_recorded_and_shown_once(left_alone):
    folder, _, shown = left_alone
    run, _ = tiny_run(folder, tiny_mesh())
    lines = read_history(folder / "metrics.jsonl")
    steps = list(range(1, run.total_steps + 1))
    assert run.total_steps >= 10
    assert [line["step"] for line in lines] == shown == steps
    for line in lines:
        batch = run.batches.batch(line["step"] - 1)
        assert line["targets"] == batch.is_target.sum()
        assert line["tokens"] == (batch.segments > 0).sum()
        np.testing.assert_allclose(line["learning_rate"], run.schedule(line["step"] - 1))
        assert line["leak"] < 1e-6
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_checkpoints_are_kept_as_asked_and_the_last_step_is_one(left_alone):
    folder, _, shown = left_alone
    last = len(shown)
    assert saved_steps(folder) == [last - 4 + last % 2, last - 2 + last % 2, last][-3:]


def test_no_text_of_a_record_is_written(left_alone):
    folder, _, _ = left_alone
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not any(SECRET[:9].encode() in path.read_bytes() for path in files)
    assert not any(b"case-" in path.read_bytes() for path in files)


def test_stopping_three_times_changes_nothing(tmp_path, left_alone, stop_after):
    _, digest, shown = left_alone
    per_epoch = len(shown) // 2
    folder, done = tmp_path / "da", 0
    for steps in (3, per_epoch - 3, 1):  # the second and third time at the border of the epochs
        stop_after(steps)
        done += steps
        with pytest.raises(StoppedEarly, match=f"stopped after step {done} of {len(shown)}"):
            go(folder)
        assert saved_steps(folder)[-1] == done
    stop_after(0)
    assert state_digest(go(folder)) == digest
    assert numbers_in(folder) == numbers_in(left_alone[0])


def test_a_finished_run_is_not_run_again(left_alone):
    folder, digest, _ = left_alone
    shown = Steps()
    assert state_digest(go(folder, shown)) == digest
    assert shown == []


def test_being_told_to_end_at_the_last_step_is_finishing(tmp_path, left_alone, stop_after):
    stop_after(2)
    go(tmp_path / "da", total_steps=2)
    assert saved_steps(tmp_path / "da") == [2]


def broken(frozen):
    """Frozen trees with one weight that is not a number."""
    flat = flatten(frozen[BASE])
    name = "model/norm/scale"
    flat[name] = jnp.full_like(flat[name], jnp.nan)
    return {**frozen, BASE: unflatten(flat)}


def test_a_loss_that_is_no_number_names_step_and_records(tmp_path, stop_after):
    folder = tmp_path / "da"
    stop_after(4)
    with pytest.raises(StoppedEarly):
        go(folder)
    stop_after(0)
    run, state = tiny_run(folder, tiny_mesh(), every_steps=1)
    run = dataclasses.replace(run, frozen=broken(run.frozen))
    with jax.set_mesh(tiny_mesh()), pytest.raises(NonFiniteLossError) as error:
        run_stage(run, state, tiny_mesh(), Steps())
    message = str(error.value)
    assert "step 5: loss nan" in message
    places = [place for _, place in run.batches.record_ids(4)]
    assert len(places) >= 4
    assert all(place in message for place in places)
    assert SECRET[:9] not in message
    assert saved_steps(folder) == [2, 4]
    assert [line["step"] for line in numbers_in(folder)] == [1, 2, 3, 4]


def test_a_run_with_other_settings_is_refused(left_alone):
    folder, digest, _ = left_alone
    run, _ = tiny_run(folder, tiny_mesh())
    with pytest.raises(CheckpointError, match="seed: 0 -> 1"):
        go(folder, meta={**run.meta, "seed": 1})
    go(folder, meta={**run.meta, "stage.clip_norm": 2.0})  # warned of only
    assert state_digest(go(folder)) == digest


def start(folder, pause):
    """The stage as a process of its own."""
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.runs", f"--folder={folder}", f"--pause={pause}"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": f"{flags} --xla_cpu_use_fusion_emitters=false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    """Last line and errors of a process that ends with an exit code."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-3000:]
    return (out.splitlines() or [""])[-1], err


def wait_for(process, wanted):
    """Returns once a process has said something."""
    for line in process.stdout:
        if line.strip() == wanted:
            return
    raise AssertionError(f"it ended before {wanted!r}: {process.communicate()[1][-3000:]}")


@pytest.fixture(scope="module")
def left_alone_outside(tmp_path_factory):
    """Folder and digest of an undisturbed run in a process of its own."""
    folder = tmp_path_factory.mktemp("outside") / "da"
    return folder, finish(start(folder, 0.0))[0]


@pytest.mark.slow
def test_killing_it_at_random_changes_nothing(tmp_path, left_alone_outside):
    alone, digest = left_alone_outside
    folder, chance = tmp_path / "da", random.Random(11)
    for step in (1, 5, 6, 9):
        process = start(folder, 0.1)
        wait_for(process, f"step {step}")
        time.sleep(chance.uniform(0.0, 0.25))
        process.kill()
        finish(process, -signal.SIGKILL)
    assert finish(start(folder, 0.0))[0] == digest
    assert numbers_in(folder) == numbers_in(alone)


@pytest.mark.slow
def test_sigterm_saves_ends_well_and_goes_on(tmp_path, left_alone_outside):
    alone, digest = left_alone_outside
    folder = tmp_path / "da"
    process = start(folder, 0.3)
    wait_for(process, "step 3")
    process.terminate()
    _, err = finish(process)
    step = saved_steps(folder)[-1]
    assert 3 <= step < len(numbers_in(alone))
    assert f"stopped after step {step} of" in err
    process = start(folder, 0.3)
    wait_for(process, "ready")
    process.terminate()  # before the first step, which is not step 1
    finish(process)
    assert saved_steps(folder)[-1] == step + 1
    assert finish(start(folder, 0.0))[0] == digest
    assert numbers_in(folder) == numbers_in(alone)
