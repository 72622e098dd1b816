"""tools/plan.py as a user calls it wrongly; its plans are tested in tests/planning."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_slice_that_does_not_exist_is_one_line():
    line = [sys.executable, "tools/plan.py", "--config=configs/tiny.py", "--topology=v9:2x2"]
    done = subprocess.run(
        line, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "topology 'v9:2x2' does not exist; expected FAMILY:SHAPE" in done.stderr
    assert "Traceback" not in done.stderr
