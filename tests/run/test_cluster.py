"""Flags and variables by which processes find each other."""

import os
import subprocess
import sys

import pytest

from medcare_jax.distributed import ClusterError, Place, check_alone, check_place

SCRIPT = """
from medcare_jax.run.cluster import join
from medcare_jax.run.command import run

def main():
    join()
    import jax
    print(jax.process_count(), jax.process_index())

run(main)
"""


def join(*flags, **environ):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *flags],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_part_of_a_place_is_refused_before_anything_waits():
    done = join("--num_processes=2", "--process_id=0")
    assert done.returncode == 1
    assert "coordinator_address not given" in done.stderr
    assert "Traceback" not in done.stderr


def test_variables_stand_for_flags():
    done = join(JAX_NUM_PROCESSES="1")
    assert done.stdout.split() == ["1", "0"], done.stderr


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place("10.0.0.2:8476", 4), "process_id not given"),
        (Place("10.0.0.2", 4, 0), "expected HOST:PORT"),
        (Place("10.0.0.2:8476", 4, 4), "expected 0 to num_processes - 1"),
    ],
)
def test_a_place_is_whole(place, message):
    with pytest.raises(ClusterError, match=message):
        check_place(place)


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_a_launcher_of_several_is_not_ignored(name):
    with pytest.raises(ClusterError, match=f"{name} = 4.*--coordinator_address"):
        check_alone({name: "4"})
    check_alone({name: "1"})
