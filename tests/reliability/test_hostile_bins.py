"""No code of a `.bin` file is ever run, and refusing one takes neither time nor memory."""

import json
import pathlib
import pickle
import subprocess
import sys

import pytest

pytest.importorskip("torch")

from tests.reliability.hostile_bins import hostile_files

# One process for all, so that torch is imported once; peak memory only grows, so the difference
# after each file is at least what that file took.
_CHILD = """
import json, pathlib, resource, sys, time
import torch
from medcare_jax.conversion import ConversionError
from medcare_jax.conversion.torch_files import read_bin

folder = pathlib.Path(sys.argv[1])
read_bin(folder / "good.bin")
for path in sorted(folder.glob("[0-9]*.bin")):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    try:
        found = read_bin(path)
        outcome = "read"
    except ConversionError as error:
        outcome = str(error)
    print(json.dumps({
        "name": path.stem,
        "outcome": outcome,
        "seconds": time.perf_counter() - start,
        "mebibytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }))
"""


@pytest.mark.torch
def test_thirty_hostile_files(tmp_path: pathlib.Path) -> None:
    import torch

    folder, canary = tmp_path / "bins", tmp_path / "canary"
    folder.mkdir()
    torch.save({"a": torch.ones(3)}, folder / "good.bin")
    names = {}
    for number, (name, content) in enumerate(hostile_files(canary)):
        names[f"{number:02d}"] = name
        (folder / f"{number:02d}.bin").write_bytes(content)
    assert len(names) == 30
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, folder], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert not canary.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"bins"}
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == 30
    for result in results:
        name = names[result["name"]]
        assert "refused" in result["outcome"], (name, result)
        assert f"{result['name']}.bin" in result["outcome"], (name, result)
        assert result["mebibytes"] < 256, (name, result)


@pytest.mark.torch
def test_the_control_does_run_where_nobody_is_careful(tmp_path: pathlib.Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(dict(hostile_files(canary))["pickle of mkdir"])
    assert canary.is_dir()
