"""Ctrl-C in a process that is deep in a call that Python cannot interrupt."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Half a minute in C, like a compilation: Python's own handlers wait until it is over.
BUSY = """
import hashlib
import signal
from medcare_jax import interrupts
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the job's own answer to it is not there
signal.signal(signal.SIGUSR1, lambda number, frame: None)
interrupts.watch()
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha512", b"x", b"y", 40_000_000)
"""
# What stops when it is told to, as the job does.
STOPPED = """
import time
from medcare_jax import distributed
from medcare_jax.run.command import run

def main():
    distributed.start()
    print("ready", flush=True)
    while not distributed.must_stop():
        time.sleep(0.05)
    raise distributed.StoppedEarly("stopped after step 3 of 6; saved")

run(main)
"""


def start(program: str, *arguments: str) -> subprocess.Popen:
    """A process that has said that it is ready."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=ROOT, **pipes)
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def said(process: subprocess.Popen, seconds: float) -> str:
    """Its next line that is not empty, which has to come in time."""
    begin = time.monotonic()
    while not (line := process.stderr.readline().strip()):
        pass
    assert time.monotonic() - begin < seconds
    return line


@pytest.fixture
def busy():
    """A process in the middle of its call."""
    process = start(BUSY)
    yield process
    process.kill()
    process.communicate()


def test_the_first_is_heard_and_the_second_ends(busy):
    busy.send_signal(signal.SIGINT)
    assert said(busy, 5) == "stopping as soon as all is saved; press Ctrl-C again to end at once"
    assert busy.poll() is None
    busy.send_signal(signal.SIGINT)
    assert said(busy, 5) == "interrupted; the same command goes on from the last checkpoint"
    assert busy.wait(5) == 130


def test_other_signals_are_none_of_its_business(busy):
    busy.send_signal(signal.SIGUSR1)
    time.sleep(0.5)
    busy.send_signal(signal.SIGINT)
    assert said(busy, 5).startswith("stopping")
    time.sleep(0.5)
    assert busy.poll() is None, "the other signal was counted as the first Ctrl-C"


@pytest.mark.parametrize(
    ("number", "arguments", "code"),
    [
        (signal.SIGINT, (), 130),
        (signal.SIGINT, ("--stopped_code=42",), 130),
        (signal.SIGTERM, (), 0),
        (signal.SIGTERM, ("--stopped_code=42",), 42),
    ],
)
def test_a_saved_stop_says_who_asked_for_it(number, arguments, code):
    process = start(STOPPED, *arguments)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert "stopped after step 3 of 6; saved. The same command goes on from there." in errors
    assert process.returncode == code
