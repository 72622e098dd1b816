"""Disks that fill up, are slow or cannot be written, and clocks that jump."""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import pytest

from medcare_jax.checkpoints import Checkpoints
from medcare_jax.run.workdir import WorkdirError, hold
from tests.reliability import tiny_job
from tests.reliability.test_damaged_folders import make_state


@contextlib.contextmanager
def mounted(place: pathlib.Path, options: str):
    """A disk in memory that nothing else is on."""
    place.mkdir(exist_ok=True)
    line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
    try:
        subprocess.run(line, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk cannot be mounted here, which needs root ({error})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """The means to start jobs, their data, and what one leaves on a disk with room."""
    folder = tmp_path_factory.mktemp("disks")
    data = tiny_job.write_data(folder / "data")
    with tiny_job.warm(folder / "cache") as start:
        start.start(tiny_job.arguments(data, folder / "alone"), folder / "log")
        assert start.wait() == 0, (folder / "log").read_text()[-3000:]
        yield start, data, folder, tiny_job.outcome(folder / "alone")


def has_two_steps(workdir: pathlib.Path, stage: str) -> bool:
    """Whether a stage's first checkpoint is there and signed."""
    return (workdir / stage / "checkpoints" / "2" / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["mka", "da", "exporting"])
@pytest.mark.parametrize("left_kib", [4, 60])
def test_a_disk_that_fills_up_is_named_and_nothing_is_lost(setting, when, left_kib):
    start, data, folder, expected = setting
    log = folder / "log"
    with mounted(folder / "disk", "size=16m") as disk:
        workdir = disk / "run"
        argv = tiny_job.arguments(data, workdir)

        def is_time() -> bool:
            if when == "exporting":
                return tiny_job.phase(workdir, log) == when
            return has_two_steps(workdir, when)

        pid = start.start(argv, log)
        assert tiny_job.wait_until(is_time, pid)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - left_kib * 1024)))
        assert start.wait() == 1, log.read_text()[-3000:]
        said = log.read_text()
        assert f"the disk of {workdir}" in said.replace("\n", " ")
        assert "Exception ignored" not in said
        tiny_job.check_nothing_false(workdir, expected)
        ballast.unlink()
        start.start(argv, log)
        assert start.wait() == 0, log.read_text()[-3000:]
        if when != "exporting":
            assert f"{when}: going on from step" in log.read_text()
        assert tiny_job.outcome(workdir) == expected


@pytest.fixture(scope="module")
def slow_disk(tmp_path_factory):
    """A library that makes every write of a process below a folder wait."""
    library = tmp_path_factory.mktemp("library") / "slow_disk.so"
    source = pathlib.Path(__file__).with_name("slow_disk.c")
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    return library


@pytest.mark.slow
def test_a_slow_disk_costs_time_and_nothing_else(setting, slow_disk):
    _, data, folder, expected = setting
    workdir, log = folder / "slow", folder / "slow.log"
    argv = tiny_job.arguments(data, workdir, checkpoint__grace_seconds=4.0)
    environment = {"SLOW_DISK": str(workdir), "SLOW_MILLISECONDS": "100"}
    with tiny_job.warm(folder / "cache", LD_PRELOAD=str(slow_disk), **environment) as start:
        pid = start.start(argv, log)
        assert tiny_job.wait_until(lambda: tiny_job.phase(workdir, log) == "saving", pid)
        tiny_job.end(pid, signal.SIGTERM)
        begun = time.monotonic()
        assert start.wait() == 0, log.read_text()[-3000:]
        print(f"SIGTERM in a save: {time.monotonic() - begun:.1f} s to the end")
        assert "stopped" in log.read_text()
        tiny_job.check_nothing_false(workdir, expected)
        start.start(argv, log)
        assert start.wait() == 0, log.read_text()[-3000:]
    said = log.read_text()
    assert "of checkpoint.grace_seconds" in said.replace("\n", " ")
    assert tiny_job.outcome(workdir) == expected


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path):
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        for workdir in (disk, disk / "new"):
            with (
                pytest.raises(WorkdirError, match="cannot be written .*name another --workdir"),
                hold(workdir),
            ):
                pass


def test_checkpoints_go_by_their_number_whatever_the_clock_says(tmp_path, monkeypatch):
    chance = random.Random(3)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in range(1, 6):
            monkeypatch.setattr(time, "time", lambda step=step: 2e9 - 1e7 * step)  # ever earlier
            checkpoints.save(step, make_state(step), {"seed": step})
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "5"]
    for path in tmp_path.rglob("*"):
        os.utime(path, (moment := chance.uniform(0, 4e9), moment))
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.latest_step() == 5
        assert not checkpoints.rejected
        checkpoints.save(6, make_state(6), {"seed": 6})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5", "6"]
