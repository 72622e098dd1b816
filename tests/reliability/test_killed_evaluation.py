"""`tools/evaluate.py` under `kill -9` at moments that chance picks: its files stay the same."""

import collections
import json
import pathlib
import random
import shutil
import signal
import time

import pytest

from medcare_jax.evaluation.results import read_results
from tests.evaluation.records import record, write
from tests.reliability import tiny_job
from tests.run.workdirs import write_base

EXAM, SUMMARIES = 40, 16


@pytest.fixture(scope="module")
def argv(tmp_path_factory) -> list[str]:
    """The command without its output: two tasks, both protocols, chunks of four items."""
    folder = tmp_path_factory.mktemp("evaluation")
    data = folder / "data"
    data.mkdir()
    questions = [record(f"Which{'?' * n}\nA. one {n}\nB. two", "AB"[n % 2], n) for n in range(EXAM)]
    write(data, "medqa", *questions)
    write(data, "meqsum", *(record(f"Shorten {n}.", f"Short {n}", n) for n in range(SUMMARIES)))
    return [
        str(tiny_job.ROOT / "tools" / "evaluate.py"),
        f"--model={write_base(folder / 'base')}",
        f"--data={data}",
        "--protocols=generate,likelihood",
        "--batch=1",
        "--max_new_tokens=24",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [40])
def test_kill_at_random_moments_leaves_the_same_bytes(argv, kills, tmp_path):
    chance, found, ends = random.Random(11), collections.Counter[str](), 0
    log, output = tmp_path / "log", tmp_path / "scores"
    with tiny_job.warm(tmp_path / "cache") as start:
        _life(start, argv, tmp_path / "compiled", log)
        whole = _life(start, argv, tmp_path / "alone", log)
        expected = _bytes(tmp_path / "alone")
        assert {"results.json", "samples.jsonl", "report.html"} <= expected.keys()
        while found.total() < kills:
            is_killed = _life(start, argv, output, log, kill_after=chance.uniform(0, whole)) is None
            found[_check(output, expected, is_ended=not is_killed)] += is_killed
            if not is_killed:
                shutil.rmtree(output)
                ends += 1
        _life(start, argv, output, log)
        _check(output, expected, is_ended=True)
    print(f"{kills} kills: {dict(found)}; {ends + 1} evaluations came to their end")
    assert len(found) >= 3, "some kills are to meet the beginning, the middle and the end"


def _life(
    start: tiny_job.Warm,
    argv: list[str],
    output: pathlib.Path,
    log: pathlib.Path,
    *,
    kill_after: float | None = None,
) -> float | None:
    """Seconds that the command took, or None if it was killed before its end."""
    begin = time.monotonic()
    pid = start.start([*argv, f"--output={output}"], log)
    if kill_after is not None:
        tiny_job.wait_until(lambda: time.monotonic() - begin > kill_after, pid)
        tiny_job.end(pid, signal.SIGKILL)
    code = start.wait()
    assert code in ((0,) if kill_after is None else (0, -signal.SIGKILL)), log.read_text()[-3000:]
    return time.monotonic() - begin if code == 0 else None


def _check(output: pathlib.Path, expected: dict[str, bytes], *, is_ended: bool) -> str:
    """How far an evaluation has come; raises if something looks whole and is not."""
    found = _bytes(output)
    if is_ended:
        assert found == expected
        return "ended"
    results = read_results(output)
    if results is None:
        return "before any result"
    if results["status"] == "complete":
        assert found["results.json"] == expected["results.json"]
        assert found["samples.jsonl"] == expected["samples.jsonl"]
        return "all answered"
    tasks = json.loads(expected["results.json"])["tasks"]
    parts = [(n, p) for n, entry in results["tasks"].items() for p in entry["protocols"]]
    for name, protocol in parts:
        mine = results["tasks"][name]["protocols"][protocol]
        assert mine == tasks[name]["protocols"][protocol]
    chunks = found.get("samples.jsonl.part", b"").count(b"\n") - 1
    return f"{len(parts)} of 3 parts" if chunks > 0 else "before any answer"


def _bytes(folder: pathlib.Path) -> dict[str, bytes]:
    """What lies in a folder, but the lock and the mark of its holder."""
    if not folder.exists():
        return {}
    files = (path for path in folder.iterdir() if path.name not in (".lock", ".hosts"))
    return {path.name: path.read_bytes() for path in files}
