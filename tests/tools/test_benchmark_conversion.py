"""The benchmark measures a real conversion and removes all that it wrote."""

import functools
import importlib.util
import json
import pathlib

import pytest
from absl import flags

from medcare_jax.conversion import synthetic
from tests.helpers import TINY

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_a_tiny_model(tmp_path, monkeypatch, capsys):
    path = ROOT / "tools" / "benchmark_conversion.py"
    spec = importlib.util.spec_from_file_location("benchmark_conversion", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tiny = functools.partial(synthetic.write_model, settings=TINY["qwen2"])
    monkeypatch.setattr(synthetic, "write_model", tiny)
    output = tmp_path / "result.json"
    flags.FLAGS(["x", f"--folder={tmp_path / 'work'}", "--layers=2", f"--output={output}"])
    tool.main()
    result = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["convert_seconds"] > result["copy_seconds"] >= 0
    assert result["ratio"] > 1
    assert 0.1 < result["peak_rss_gigabytes"] < 3
    assert list((tmp_path / "work").iterdir()) == []
