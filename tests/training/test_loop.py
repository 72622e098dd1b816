"""A run that is stopped, killed or broken, against one that is left alone."""

import dataclasses
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax import distributed
from medcare_jax.checkpoints import CheckpointError, find_fault
from medcare_jax.distributed import StoppedEarly
from medcare_jax.params import BASE, flatten, unflatten
from medcare_jax.training import loop
from medcare_jax.training.history import SKIPPED, read_history
from medcare_jax.training.loop import NonFiniteLossError, run_stage
from medcare_jax.training.step import Metrics
from tests import quick
from tests.training.runs import SECRET, state_digest, tiny_batches, tiny_mesh, tiny_run

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


@pytest.mark.parametrize(("grace", "told"), [(1e-3, 1), (1e4, 0)])
def test_a_stop_that_needs_most_of_the_grace_is_told_of_once(tmp_path, caplog, grace, told):
    go(tmp_path / "da", grace_seconds=grace)
    said = [line for line in caplog.messages if "a stop waits for a step" in line]
    assert len(said) == told
    assert all("0.0 s of checkpoint.grace_seconds" in line for line in said)


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


def test_a_loss_that_is_no_number_stops_where_none_may_be_left_out(tmp_path, stop_after):
    folder = tmp_path / "da"
    stop_after(4)
    with pytest.raises(StoppedEarly):
        go(folder)
    stop_after(0)
    run, state = tiny_run(folder, tiny_mesh(), every_steps=1)
    run = dataclasses.replace(run, frozen=broken(run.frozen))
    with jax.set_mesh(tiny_mesh()), pytest.raises(NonFiniteLossError) as error:
        run_stage(run, state, tiny_mesh(), Steps())
    assert "step 5: loss nan" in str(error.value)
    assert str(folder / SKIPPED) in str(error.value)
    assert SECRET[:9] not in str(error.value)
    assert saved_steps(folder) == [2, 4]
    (left_out,) = read_history(folder / SKIPPED)
    names = [(each["id"], each["location"]) for each in left_out["records"]]
    assert (left_out["step"], names) == (5, list(run.batches.record_ids(4)))
    assert len(names) >= 4


def with_a_bad_token(frozen):
    """Frozen trees whose embedding of the letter z is infinite: nobody learns from it."""
    flat = flatten(frozen[BASE])
    name = "model/embed_tokens/embedding"
    flat[name] = flat[name].at[ord("z")].set(jnp.inf)
    return {**frozen, BASE: unflatten(flat)}


def spoil(folder, ids):
    """Writes the dialogues of the tiny run, of which those named say z."""
    tiny_batches(folder)
    path = folder / "dialogues.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["conversations"][0]["value"] += "z" * (record["id"] in ids)
    path.write_text("\n".join(map(json.dumps, records)))
    return records


def go_spoilt(folder, **changes):
    """Runs the tiny stage with the bad token, or goes on with it."""
    mesh = tiny_mesh()
    run, state = tiny_run(folder, mesh, **changes)
    run = dataclasses.replace(run, frozen=with_a_bad_token(run.frozen))
    with jax.set_mesh(mesh):
        return run_stage(run, state, mesh, Steps())


@pytest.fixture(scope="module")
def left_out(tmp_path_factory):
    """Folder, digest and records of a run in which one record of 36 gives no number."""
    folder = tmp_path_factory.mktemp("spoilt") / "da"
    records = spoil(folder.parent, {"case-17"})
    return folder, state_digest(go_spoilt(folder, max_skipped=2)), records


def test_steps_without_a_finite_loss_are_left_out_and_the_run_goes_on(left_out):
    folder, _, _ = left_out
    lines = read_history(folder / "metrics.jsonl")
    skipped = read_history(folder / SKIPPED)
    assert [line["step"] for line in lines if line["loss"] is None] == [x["step"] for x in skipped]
    assert len(skipped) == lines[-1]["skipped"] == 2  # one in each of two epochs
    assert all("case-17" in {each["id"] for each in x["records"]} for x in skipped)
    assert lines[-1]["leak"] < 1e-6
    assert not any("conversations" in line for line in (folder / SKIPPED).read_text().splitlines())


def test_the_listed_records_alone_give_no_number_and_the_others_do(left_out, tmp_path):
    folder, _, records = left_out
    listed = {each["id"] for each in read_history(folder / SKIPPED)[0]["records"]}
    assert 1 < len(listed) < len(records)
    for name, is_listed in (("listed", True), ("others", False)):
        (tmp_path / name).mkdir()
        chosen = [json.dumps(x) for x in records if (x["id"] in listed) is is_listed]
        (tmp_path / name / "dialogues.jsonl").write_text("\n".join(chosen))
    with pytest.raises(NonFiniteLossError):
        go_spoilt(tmp_path / "listed" / "da")
    go_spoilt(tmp_path / "others" / "da")


def test_stopping_around_a_step_that_is_left_out_changes_nothing(left_out, tmp_path, stop_after):
    folder, digest, _ = left_out
    spoil(tmp_path, {"case-17"})
    first = read_history(folder / SKIPPED)[0]["step"]
    for steps in (first - 1, 1, 1):
        if steps:
            stop_after(steps)
            with pytest.raises(StoppedEarly):
                go_spoilt(tmp_path / "da", max_skipped=2)
    stop_after(0)
    assert state_digest(go_spoilt(tmp_path / "da", max_skipped=2)) == digest
    assert numbers_in(tmp_path / "da") == numbers_in(folder)
    for mine, theirs in zip(
        read_history(tmp_path / "da" / SKIPPED), read_history(folder / SKIPPED), strict=True
    ):
        assert [x["id"] for x in mine["records"]] == [x["id"] for x in theirs["records"]]


def test_one_more_than_may_be_left_out_stops_the_run(left_out, tmp_path):
    folder, _, _ = left_out
    spoil(tmp_path, {"case-17"})
    second = read_history(folder / SKIPPED)[1]["step"]
    with pytest.raises(NonFiniteLossError, match=f"step {second}: loss nan.*2 steps .* 1 may be"):
        go_spoilt(tmp_path / "da", max_skipped=1)
    assert max(saved_steps(tmp_path / "da")) < second


def test_a_run_with_other_settings_is_refused(left_alone):
    folder, digest, _ = left_alone
    run, _ = tiny_run(folder, tiny_mesh())
    with pytest.raises(CheckpointError, match="seed: 0 -> 1"):
        go(folder, meta={**run.meta, "seed": 1})
    go(folder, meta={**run.meta, "stage.clip_norm": 2.0})  # warned of only
    assert state_digest(go(folder)) == digest


def start(folder, pause):
    """The stage as a process of its own."""
    flags = f"--xla_force_host_platform_device_count=2 {quick.FLAGS}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.runs", f"--folder={folder}", f"--pause={pause}"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
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


def test_a_step_left_out_for_its_update_alone_is_noted_and_counted(tmp_path):
    """Loss and gradient are finite; only the step's own count says that it was left out."""
    noted, rates = [], []
    history = types.SimpleNamespace(
        add=lambda step, numbers: rates.append(numbers["learning_rate"]),
        add_skipped=lambda step, records: noted.append((step, records)),
    )
    run = types.SimpleNamespace(
        schedule=float,
        folder=tmp_path,
        max_skipped=2,
        batches=types.SimpleNamespace(record_ids=lambda batch: [("a", f"file:{batch}")]),
    )
    progress = types.SimpleNamespace(update=lambda *line: None)
    reader = loop._Reader(run, history, progress, skipped=1)
    zeros = dict.fromkeys(Metrics._fields, np.float32(0))
    for step, skipped in ((5, 1), (6, 2), (7, 2)):
        reader.pending = (step, Metrics(**zeros | {"skipped": np.float32(skipped)}))
        reader.read_pending()
    assert noted == [(6, [("a", "file:5")])]
    assert rates == [3, 4, 4]  # the step after one that is left out takes over its rate
    reader.pending = (8, Metrics(**zeros | {"skipped": np.float32(3)}))
    with pytest.raises(NonFiniteLossError, match="3 steps were left out, 2 may"):
        reader.read_pending()
