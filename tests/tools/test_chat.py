"""The command's own part: a model must be named, and what cannot be opened is one message."""

import pathlib
import subprocess
import sys

import pytest

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "chat.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model"),
        (["--model=/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_opened_is_one_message(arguments, message):
    done = subprocess.run(
        [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, timeout=240
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
