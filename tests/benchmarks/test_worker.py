import os
import subprocess
import sys

import pytest

from medcare_jax.benchmarks import worker
from medcare_jax.benchmarks.job import Contender, Job


def test_only_the_steps_after_the_warm_up_are_timed(monkeypatch):
    losses = iter([3.0, 2.0, 1.0])
    contender = Contender(lambda: next(losses), "cpu", lambda: None, 5)
    monkeypatch.setattr(worker, "load", lambda name: lambda job: contender)
    found = worker.measure(Job("any", {}, (0.1, 0.1, 0.1), warmup=1))
    assert found.losses == [3.0, 2.0, 1.0]
    assert len(found.seconds) == len(found.cpu_seconds) == 2
    assert found.peak_rss_bytes >= found.imports_bytes > 2**20


@pytest.mark.parametrize("name", worker.BUILDERS)
def test_every_contender_can_be_loaded(name):
    if name != "medcare_jax":
        pytest.importorskip("torch")
    assert callable(worker.load(name))


@pytest.mark.slow
@pytest.mark.torch
def test_pytorch_processes_do_not_load_jax():
    code = (
        "import sys; from medcare_jax.benchmarks import worker; worker.load('peft_lora');"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
