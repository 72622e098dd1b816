"""The command as a user runs it: errors on one screen; killed and started again, the same table."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests import quick

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = (
    "--config.seeds=(0,)",
    "--config.facts.facts=8",
    "--config.facts.notes=8",
    "--config.facts.aligned=8",
    "--config.facts.test=8",
    "--config.run.mka.epochs=3",
    "--config.run.da.epochs=3",
    "--config.run.evaluation.max_new_tokens=2",
)


def command(workdir, *flags):
    config = ROOT / "configs" / "ablation_tiny.py"
    tool = ROOT / "tools" / "ablate.py"
    return [sys.executable, str(tool), f"--config={config}", f"--workdir={workdir}", *flags]


def environment():
    return {**os.environ, "XLA_FLAGS": quick.FLAGS, "JAX_PLATFORMS": "cpu"}


def run(workdir, *flags):
    return subprocess.run(
        command(workdir, *flags), env=environment(), capture_output=True, text=True, timeout=1200
    )


def test_what_cannot_be_a_study_is_one_screen(tmp_path):
    done = run(tmp_path / "workdir", "--config.baseline=nothing")
    assert done.returncode == 1
    assert "baseline = 'nothing'; allowed are none" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "workdir").exists()


def test_its_processes_find_each_other_by_the_flags_of_a_run(tmp_path):
    done = run(tmp_path / "workdir", "--num_processes=2", "--process_id=0")
    assert done.returncode == 1
    assert "coordinator_address not given" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_killed_and_started_again_the_table_is_the_same(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run(whole, *SMALL)
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        command(killed, *SMALL), env=environment(), stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(list(killed.glob("seed-0/*/result.json"))) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert not (killed / "study.md").exists()
    done = run(killed, *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("result is there already") >= 2
    for name in ("study.md", "study.json", "study.html"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
