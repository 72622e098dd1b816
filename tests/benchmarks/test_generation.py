"""The benchmark on a tiny model: both sides make the same tokens, and the figures add up."""

import numpy as np
import pytest

from medcare_jax.benchmarks.generation import measure
from medcare_jax.models.flops import continuation_flops
from medcare_jax.run.opening import open_folded
from tests.run.workdirs import write_base


@pytest.mark.torch
def test_both_sides_make_the_same_tokens_and_all_of_them(tmp_path, monkeypatch):
    peaks = {"jax": 1e9, "torch": 3e9, "numpy": 2e9}
    monkeypatch.setattr("medcare_jax.benchmarks.generation.measured_peaks", lambda: peaks)
    opened = open_folded(str(write_base(tmp_path / "base")))
    said: list[str] = []
    result = measure(opened, prompts=3, new_tokens=4, batches=[2], repeats=1, report=said.append)
    assert result["identical"] == 1.0
    assert [run["contender"] for run in result["runs"]] == ["medcare_jax", "transformers"]
    for run in result["runs"]:
        assert run["tokens_per_second"] * run["seconds"] == pytest.approx(3 * 4)
        assert run["tokens_per_cpu_second"] * run["cpu_seconds"] == pytest.approx(3 * 4)
    ours, theirs = (result["best"][name] for name in ("medcare_jax", "transformers"))
    expected = ours["tokens_per_second"] / theirs["tokens_per_second"]
    assert result["speedup"]["second"] == pytest.approx(expected)
    lengths = np.random.default_rng(0).integers(24, 161, 3)
    flops = sum(continuation_flops(opened.decoder, int(length), 4) for length in lengths)
    fastest = 3e9 * 3 * 4 / flops  # tokens per CPU-second
    expected = pytest.approx(fastest / theirs["tokens_per_cpu_second"])
    assert result["speedup_at_most"] == expected
    assert len(said) == 2
