"""How a command ends: what the user can mend is one screen, our own defects are not hidden."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = """
from medcare_jax.run.command import run
from medcare_jax.distributed import StoppedEarly

def main():
    raise {error}

run(main)
"""


def end_with(error, *flags):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(error=error), *flags], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("ValueError('mend this')", 1, "ValueError: mend this"),
        (
            "SystemExit(__import__('jax').numpy.zeros((2**28, 2**14)))",  # 16 TiB
            1,
            "memory is full. In training: raise data.accumulation",
        ),
        ("FileNotFoundError('absent')", 1, "FileNotFoundError: absent"),
        ("StoppedEarly('stopped after step 3')", 0, "stopped after step 3. The same command"),
        ("KeyboardInterrupt()", 130, "from the last checkpoint"),
    ],
)
def test_what_the_user_can_mend_has_no_traceback(error, code, message):
    done = end_with(error)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_defect_of_ours_shows_where():
    done = end_with("KeyError('ours')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_debug_shows_where_for_all():
    assert "Traceback" in end_with("ValueError('x')", "--debug").stderr


def test_words_that_are_no_flags_are_refused():
    done = end_with("ValueError('never reached')", "config")
    assert done.returncode == 1
    assert "unexpected argument 'config'" in done.stderr


def test_a_misspelt_key_is_named_whole():
    line = [sys.executable, "tools/medcare.py", "--config=configs/tiny.py", "--workdir=unused"]
    line += ["--config.seed=3", "--config.constraint.kindd=penalty"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no such key, --config.constraint.kindd" in done.stderr
    assert 'Did you mean "kind"' in done.stderr
