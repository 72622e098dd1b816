"""No process holds the whole model: weights onto a mesh of several, measured by the system."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from medcare_jax.conversion.synthetic import SEVEN_BILLION, write_model

pytestmark = pytest.mark.slow

# Ends with what the process holds and what it took at most, in bytes above what it had before.
READ = """
import json, sys
import jax
import numpy as np
from medcare_jax.conversion import load_base
from medcare_jax.distributed import Place, start
from medcare_jax.params import flatten
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh, sharding_for

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

folder, address, processes, number = sys.argv[1:]
is_alone = processes == "1"
start(Place(num_processes=1) if is_alone else Place(address, int(processes), int(number)))
mesh = make_mesh(MeshSettings(fsdp=int(processes)), jax.devices())
before = peak()
place = lambda leaf, shape: sharding_for(mesh, leaf, shape)
_, params = load_base(folder, dtype=np.dtype("bfloat16"), sharding_for=place)
jax.block_until_ready(params)
taken = peak() - before
parts = [part for leaf in flatten(params).values() for part in leaf.addressable_shards]
held = sum(part.data.nbytes for part in parts)
print(json.dumps({"held": held, "taken": taken}))
"""


def read(folder: pathlib.Path, processes: int) -> list[dict[str, int]]:
    """What each process said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environ = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environ.pop("XLA_FLAGS", None)  # one device a process
    lines = [
        [sys.executable, "-c", READ, str(folder), address, str(processes), str(number)]
        for number in range(processes)
    ]
    started = [
        subprocess.Popen(
            line, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for line in lines
    ]
    said = [process.communicate(timeout=900) for process in started]
    assert [process.returncode for process in started] == [0] * processes, said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_each_process_holds_its_slices_and_little_more(tmp_path: pathlib.Path) -> None:
    """Two layers and both vocabularies of a 7B model, 3.3 GB; alone it is the control."""
    nbytes = write_model(tmp_path / "model", SEVEN_BILLION, layers=2)
    largest = 2 * SEVEN_BILLION.vocab_size * SEVEN_BILLION.hidden_size
    (whole,) = read(tmp_path / "model", 1)
    halves = read(tmp_path / "model", 2)
    print({"bytes": nbytes, "alone": whole, "of two": halves})
    assert whole["held"] == nbytes
    assert whole["taken"] > nbytes
    for half in halves:
        # Norms are whole on every device; of all else each has its half.
        assert nbytes / 2 <= half["held"] < 0.501 * nbytes
        # Beside them: its half of the largest tensor as it was read and as JAX copies it.
        assert half["taken"] < half["held"] + largest + 2**27
        assert half["taken"] < nbytes
