"""The command as a user calls it; what it measures is tested beside the modules that measure."""

import pathlib
import subprocess
import sys

from medcare_jax.benchmarks import generation

ROOT = pathlib.Path(__file__).parents[2]


def test_a_config_without_shapes_is_refused_on_one_screen():
    line = [sys.executable, "tools/benchmark.py", "--config=configs/smollm2_135m.py"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "SettingsError: base.path = 'embedded'" in done.stderr
    assert "configs/benchmark_128m.py" in done.stderr


def test_the_table_of_generation_has_a_row_for_each_run():
    run = {"batch": 4, "tokens_per_second": 30.0, "tokens_per_cpu_second": 15.0}
    result = {
        "runs": [run | {"contender": name} for name in ("medcare_jax", "transformers")],
        "new_tokens": 8,
        "speedup": {"second": 1.0, "cpu_second": 1.0},
        "speedup_at_most": 2.0,
        "identical": 1.0,
    }
    shown = generation.table(result)
    assert list(shown.columns[0].cells) == ["medcare_jax", "transformers"]
    assert "100% of the prompts" in shown.caption
