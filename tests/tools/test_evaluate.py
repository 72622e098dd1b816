"""The command from outside: a judge on this machine, a comparison, and what it refuses."""

import os
import pathlib
import subprocess
import sys

import pytest

from medcare_jax.evaluation.results import read_results, write_results
from tests.evaluation.judging.server import always, serve
from tests.evaluation.judging.test_folder import folder  # noqa: F401  a fixture
from tests.evaluation.report.evaluations import results_of, task_result

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "evaluate.py"
KEY = "k-very-secret"


def evaluate(*arguments):
    environment = {**os.environ, "MEDCARE_JUDGE_KEY": KEY, "PYTHONPATH": str(TOOL.parents[1])}
    done = subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert KEY not in done.stdout + done.stderr
    return done


def test_answers_on_disk_are_marked(folder):  # noqa: F811
    with serve(always()) as (stub, url):
        done = evaluate(
            f"--output={folder}", "--judge_only", f"--judge_url={url}", "--judge_model=m",
            "--judge_tasks=CCTE",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert stub.keys == [f"Bearer {KEY}"] * 6
    assert read_results(folder)["tasks"]["ccte"]["protocols"]["generate"]["scores"]["judge"]
    assert "6 requests" in done.stdout + done.stderr


def test_two_evaluations_are_compared(tmp_path):
    for name, right in (("a", 10), ("b", 20)):
        write_results(tmp_path / name, results_of({"medqa": task_result("MedQA", right=right)}))
    done = evaluate(f"--compare={tmp_path / 'a'},{tmp_path / 'b'}", f"--output={tmp_path / 'c'}")
    assert done.returncode == 0, done.stderr
    assert "+25.0 (" in (tmp_path / "c" / "comparison.md").read_text()


def test_a_judge_without_an_address_is_refused(tmp_path):
    done = evaluate("--judge_model=m", f"--output={tmp_path}")
    assert done.returncode != 0
    assert "nothing was sent" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--data=/nowhere", "--judge_tasks=MeQSun"],
            "unknown task 'MeQSun'; the nearest are meqsum",
        ),
        (["--prompts=p.jsonl"], "--prompts scores nothing"),
        (["--data=/nowhere", "--no_samples"], "--no_samples keeps no answers"),
    ],
)
def test_a_judge_with_nothing_to_mark_is_refused_before_a_model_is_opened(tmp_path, flags, said):
    judge = ("--judge_url=http://127.0.0.1:9/v1", "--judge_model=m")
    done = evaluate("--model=/nowhere", f"--output={tmp_path / 'a'}", *judge, *flags)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--predictions=p", "--tasks=cmb", "--limit=3", "--stage=da"], "--limit, --stage"),
        (["--predictions=p", "--tasks=cmb", "--prompts=p"], "--prompts"),
        (["--prompts=p", "--model=m", "--data=d", "--no_samples", "--tasks=all"],
         "--data, --no_samples, --tasks"),
        (["--compare=a,b", "--model=m", "--tasks=cmb", "--judge_url=http://127.0.0.1:9/v1"],
         "--model, --tasks, --judge_url"),
        (["--judge_only", "--model=m", "--predictions=p", "--tasks=cmb"],
         "--model, --tasks, --predictions"),
    ],
)  # fmt: skip
def test_flags_that_would_do_nothing_are_refused(tmp_path, flags, named):
    done = evaluate(f"--output={tmp_path / 'a'}", *flags)
    assert done.returncode != 0
    assert f"{named}: without meaning beside" in done.stdout + done.stderr


def test_a_seed_that_no_bootstrap_takes_is_refused_before_anything_is_read(tmp_path):
    done = evaluate("--model=/nowhere", "--data=d", f"--output={tmp_path / 'a'}", "--seed=-1")
    assert done.returncode != 0
    assert "--seed=-1" in done.stdout + done.stderr
