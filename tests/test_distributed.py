"""When to stop: counted over the whole process, agreed once, and nobody else's business."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import multihost_utils

from medcare_jax import distributed
from medcare_jax.checkpoints import Checkpoints


@pytest.fixture
def asked(monkeypatch):
    """The numbers that JAX is asked for; it agrees to stop at the fifth."""
    numbers = []

    def reached(number):
        numbers.append(number)
        return number == 5

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    monkeypatch.setattr(distributed, "_calls", itertools.count(1))
    monkeypatch.setattr(distributed, "_is_stopping", False)
    return numbers


def test_calls_are_counted_on_and_a_stop_stays(asked):
    assert [distributed.must_stop() for _ in range(8)] == [False] * 4 + [True] * 4
    assert asked == [1, 2, 3, 4, 5]


def test_saving_does_not_disturb_the_count(asked, tmp_path):
    distributed.must_stop()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(100, {"a": jnp.ones(3)}, {})
    distributed.must_stop()
    assert asked == [1, 2]
    assert (tmp_path / "100" / "manifest.json").is_file()


def test_without_a_start_nothing_asks_to_stop():
    assert not jax.distributed.is_initialized()
    assert not distributed.must_stop()


def in_a_process(program):
    """The words that a program prints which has joined its cluster."""
    done = subprocess.run(
        [sys.executable, "-c", f"{START}\n{program}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.split()


START = """
import os, signal, time
from medcare_jax import distributed
distributed.start()
import jax
"""


def test_one_process_is_a_cluster_of_its_own():
    program = "print(jax.distributed.is_initialized(), jax.process_count(), distributed.is_first())"
    assert in_a_process(program) == ["True", "1", "True"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_is_noticed_and_does_not_kill(name):
    program = f"""
print(distributed.must_stop())
os.kill(os.getpid(), signal.{name})
deadline = time.monotonic() + 60
while not distributed.must_stop() and time.monotonic() < deadline:
    time.sleep(0.1)
print(distributed.must_stop())
"""
    assert in_a_process(program) == ["False", "True"]
