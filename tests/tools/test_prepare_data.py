"""The entry point: what it makes, and what it says when it cannot."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from medcare_jax.data.records import open_records

ROOT = pathlib.Path(__file__).parents[2]


def run(folder, *flags):
    command = [sys.executable, ROOT / "tools" / "prepare_data.py", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture
def train(tmp_path):
    turns = [{"from": "human", "value": "Fever?"}, {"from": "gpt", "value": "No."}]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"conversations": turns}) + "\n" for _ in range(3)))
    return path


def test_files_become_a_folder_that_records_are_read_from(train, tmp_path):
    done = run(tmp_path, "--input=train.jsonl", "--output=prepared", "--split=dev", "--shards=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/prepared/dev: 3 records.")
    assert len(open_records(tmp_path / "prepared" / "dev")) == 3


def test_demo_tasks_are_written(tmp_path):
    done = run(tmp_path, "--icd10=demo", "--seed=5")
    assert done.returncode == 0, done.stderr
    assert "1-stage/train.json: 1040 dialogues" in done.stdout
    assert len(open_records(tmp_path / "demo" / "1-stage" / "train.json")) == 1040


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "Give either --input"),
        (("--input=train.jsonl",), "Give either --input"),
        (("--input=train.jsonl", "--output=o", "--icd10=p"), "Give either --input"),
        (("--input=train.jsonl", "more.jsonl", "--output=o"), "'more.jsonl'"),
        (("--input=gone.jsonl", "--output=o"), "prepare_data: Expected .* gone.jsonl"),
        (("--input=bad.jsonl", "--output=o"), "prepare_data: bad.jsonl:1: conversations"),
    ],
)
def test_mistakes_are_told_on_one_screen(train, tmp_path, flags, message):
    (tmp_path / "bad.jsonl").write_text('{"id": "1"}\n')
    done = run(tmp_path, *flags)
    assert done.returncode == 1
    assert re.search(message, done.stdout + done.stderr)
    assert "Traceback" not in done.stderr
    assert len((done.stdout + done.stderr).splitlines()) < 40
    assert not (tmp_path / "o").exists()
