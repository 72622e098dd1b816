"""A workdir has one holder."""

import subprocess
import sys

import pytest

from medcare_jax.run.workdir import WorkdirError, hold


def test_another_process_is_refused_and_named(tmp_path):
    script = f"""
import pathlib, sys
from medcare_jax.run.workdir import hold
with hold(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(WorkdirError, match=f"process {process.pid};"), hold(tmp_path):
        pass
    process.kill()  # the lock goes with its holder, however that ends
    process.wait()
    process.stdin.close()
    process.stdout.close()
    with hold(tmp_path):
        pass
