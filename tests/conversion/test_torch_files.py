"""Files of `torch.save`: plain tensors come back as they were, anything else is refused unread."""

import os
import pathlib
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from medcare_jax.conversion.tensors import ConversionError, from_array
from medcare_jax.conversion.torch_files import read_bin, write_bin

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


class Malicious:
    """Pickled, this would create a file when loaded."""

    def __init__(self, canary: pathlib.Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return pathlib.Path.touch, (self.canary,)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
def test_what_is_written_comes_back(tmp_path: pathlib.Path, dtype: Any) -> None:
    values = np.arange(12, dtype=dtype).reshape(3, 4).T  # not contiguous
    write_bin(tmp_path / "x.bin", {"a": from_array(values)})
    loaded = torch.load(tmp_path / "x.bin", weights_only=True)
    np.testing.assert_array_equal(loaded["a"].numpy(), values)
    found = read_bin(tmp_path / "x.bin")["a"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[...], values)


def test_bfloat16_is_read_bit_for_bit(tmp_path: pathlib.Path) -> None:
    values = torch.tensor([1.0, -0.1, 3e38, float("inf")], dtype=torch.bfloat16)
    torch.save({"a": values}, tmp_path / "x.bin")
    found = read_bin(tmp_path / "x.bin")["a"][...]
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.view(np.int16), values.view(torch.int16).numpy())


def test_code_is_never_run(tmp_path: pathlib.Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "x.bin"
    torch.save({"x": Malicious(canary)}, path)
    with pytest.raises(ConversionError, match="not plain tensors"):
        read_bin(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("content", [[1], {"x": 1}, {1: torch.ones(2)}])
def test_other_things_are_refused(tmp_path: pathlib.Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(ConversionError, match="does not hold a dict of tensors"):
        read_bin(tmp_path / "x.bin")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_numbers_that_no_weight_has_are_refused(tmp_path: pathlib.Path, dtype: Any) -> None:
    torch.save({"x": torch.zeros(2).to(dtype)}, tmp_path / "x.bin")
    with pytest.raises(ConversionError, match="does not hold a dict of tensors"):
        read_bin(tmp_path / "x.bin")


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: pathlib.Path) -> None:
    torch.save({"x": torch.ones(1).expand(10**9)}, tmp_path / "x.bin")
    with pytest.raises(ConversionError, match="its tensors would take 4000000000"):
        read_bin(tmp_path / "x.bin")


def test_truncated_and_compressed_files_are_refused(tmp_path: pathlib.Path) -> None:
    whole = tmp_path / "x.bin"
    torch.save({"x": torch.ones(500)}, whole)
    (tmp_path / "cut.bin").write_bytes(whole.read_bytes()[:1000])
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "zip.bin", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    assert len(torch.load(tmp_path / "zip.bin", weights_only=True)["x"]) == 500  # torch would
    for name in ("cut.bin", "zip.bin"):
        with pytest.raises(ConversionError, match="truncated or is not plain"):
            read_bin(tmp_path / name)


def test_an_absent_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.bin"):
        read_bin(tmp_path / "absent.bin")


def test_a_pipe_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "x.bin")
    with pytest.raises(ConversionError, match=r"x\.bin is not a file"):
        read_bin(tmp_path / "x.bin")
