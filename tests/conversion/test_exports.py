"""Exports without the command: sizes, room on the disk, and what a report says."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from medcare_jax.conversion.exports import check_room, export_bytes, export_huggingface
from medcare_jax.conversion.sources import Source, open_source
from medcare_jax.conversion.tensors import DTYPES, ConversionError
from tests.conversion.conftest import MakeFolder
from tests.helpers import TINY


@pytest.fixture
def source(make_folder: MakeFolder, tmp_path: pathlib.Path) -> Source:
    make_folder(tmp_path / "base", TINY["llama"])
    return open_source(tmp_path / "base", "huggingface", None)


def test_bytes_of_the_weights_are_those_of_the_file(source: Source, tmp_path: pathlib.Path) -> None:
    assert export_bytes(source, DTYPES["bfloat16"]) * 2 == export_bytes(source, None)
    export_huggingface(source, tmp_path / "out", dtype=None, shard_bytes=1 << 30)
    header = (tmp_path / "out/model.safetensors").read_bytes()[:8]
    size = (tmp_path / "out/model.safetensors").stat().st_size
    assert export_bytes(source, None) == size - 8 - int.from_bytes(header, "little")


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_a_conversion_that_computes_nothing_runs_nothing(
    source: Source, tmp_path: pathlib.Path, dtype: str | None
) -> None:
    target = tmp_path / "out"
    export_huggingface(source, target, dtype=DTYPES[dtype] if dtype else None, shard_bytes=1 << 30)
    agreement = json.loads((target / "conversion_report.json").read_text())["agreement"]
    assert (agreement["positions"] == 0) == (dtype != "bfloat16")
    assert ("bit" in agreement["how"] or "value" in agreement["how"]) == (dtype != "bfloat16")
    assert np.isfinite(agreement["kl"])


def test_room_is_that_of_the_targets_disk(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def usage(place: pathlib.Path) -> tuple[int, int, int]:
        asked.append(place)
        return shutil._ntuple_diskusage(2**31, 2**30, 2**30)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert check_room(tmp_path / "a/b/c", 2**30) == 2**30
    assert asked == [tmp_path]
    with pytest.raises(ConversionError, match=r"needs 1\.50 GiB, the disk .*has 1\.00 GiB free"):
        check_room(tmp_path / "a", 3 * 2**29)
