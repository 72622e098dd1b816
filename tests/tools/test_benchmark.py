"""The command as a user calls it; what it measures is tested beside the modules that measure."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_a_config_without_shapes_is_refused_on_one_screen():
    line = [sys.executable, "tools/benchmark.py", "--config=configs/smollm2_135m.py"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "SettingsError: base.path = 'embedded'" in done.stderr
    assert "configs/benchmark_128m.py" in done.stderr
