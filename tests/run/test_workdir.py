"""A workdir has one holder; its files are whole or absent."""

import subprocess
import sys

import pytest

from medcare_jax.run.workdir import WorkdirError, hold, read_json, write_json, write_text


def test_json_round_trip_and_nothing_beside_it(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": [1, "é"]})
    assert read_json(tmp_path / "new" / "a.json") == {"b": [1, "é"]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    assert read_json(tmp_path / "absent.json") is None


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"


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
