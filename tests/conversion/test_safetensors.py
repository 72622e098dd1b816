"""Safetensors streams: equal to the reference library's, and strict where that is lax."""

import json
import os
import pathlib
import struct
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medcare_jax.conversion.safetensors import INDEX_NAME, read_file, read_folder, write_folder
from medcare_jax.conversion.tensors import ConversionError, from_array

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_]
TENSORS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.weight": np.arange(5).astype(ml_dtypes.bfloat16),
    "scalar": np.array(2.5, np.float16),
    "empty": np.zeros((0, 3), np.float32),
}


def write(folder: pathlib.Path, tensors: dict[str, np.ndarray], shard_bytes: int = 1 << 30) -> None:
    folder.mkdir(exist_ok=True)
    lazy = {name: from_array(tensor) for name, tensor in tensors.items()}
    write_folder(folder, lazy, shard_bytes=shard_bytes)


def write_raw(path: pathlib.Path, header: Any, values: bytes = b"") -> pathlib.Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)
    return path


def check_equal(found: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        values = found[name][...]
        assert (values.dtype, values.shape) == (tensor.dtype, tensor.shape)
        assert values.tobytes() == tensor.tobytes()


def test_the_reference_library_reads_what_we_write(tmp_path: pathlib.Path) -> None:
    write(tmp_path, TENSORS)
    check_equal(safetensors.numpy.load_file(tmp_path / "model.safetensors"), TENSORS)
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_read_what_the_reference_library_writes(tmp_path: pathlib.Path) -> None:
    safetensors.numpy.save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    check_equal(read_folder(tmp_path), TENSORS)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), shard_bytes=st.integers(1, 400))
def test_round_trip_in_shards_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, shard_bytes: int
) -> None:
    shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
    raw = st.tuples(st.sampled_from(DTYPES), shapes, st.integers(0, 255))
    drawn = data.draw(st.dictionaries(st.text("ab.", min_size=1, max_size=4), raw, min_size=1))
    tensors = {
        name: np.full(shape, byte % 2 if dtype == np.bool_ else byte).astype(dtype)
        for name, (dtype, shape, byte) in drawn.items()
    }
    folder = tmp_path_factory.mktemp("shards")
    write(folder, tensors, shard_bytes)
    check_equal(read_folder(folder), tensors)
    if (folder / INDEX_NAME).exists():
        for name, file in json.loads((folder / INDEX_NAME).read_text())["weight_map"].items():
            shard = safetensors.numpy.load_file(folder / file)
            assert sum(x.nbytes for x in shard.values()) <= max(shard_bytes, shard[name].nbytes)


def test_same_input_gives_same_bytes(tmp_path: pathlib.Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, TENSORS, shard_bytes=20)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files[0] == "model-00001-of-00002.safetensors"
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_index_follows_the_format(tmp_path: pathlib.Path) -> None:
    write(tmp_path, TENSORS, shard_bytes=20)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    assert index["weight_map"].keys() == TENSORS.keys()


def test_a_read_array_is_its_own(tmp_path: pathlib.Path) -> None:
    write(tmp_path, TENSORS)
    tensor = read_folder(tmp_path)["b.weight"]
    tensor[...][0, 0] = 99
    assert tensor[0:1, 0:1] == 0


@pytest.mark.parametrize("lost", [1, 30, 100])
def test_truncated_file(tmp_path: pathlib.Path, lost: int) -> None:
    write(tmp_path, TENSORS)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(ConversionError, match=r"truncated|no whole safetensors"):
        read_folder(tmp_path)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "values", "message"),
    [
        (b"not json", b"", "not JSON"),
        ([1, 2], b"", "not an object"),
        (b'{"x": %s, "x": %s}' % ((json.dumps(ENTRY).encode(),) * 2), bytes(8), "lists x twice"),
        ({"x": ENTRY}, bytes(9), "too long"),
        ({"x": ENTRY | {"dtype": "F8_E4M3"}}, bytes(8), "dtype F8_E4M3"),
        ({"x": ENTRY | {"shape": [3]}}, bytes(8), "needs 12 bytes, its offsets span 8"),
        ({"x": ENTRY | {"shape": [-2]}}, bytes(8), "lacks dtype, shape"),
        ({"x": {"dtype": "F32"}}, bytes(8), "lacks dtype, shape"),
        ({"x": ENTRY | {"dtype": ["F32"]}}, bytes(8), "x.safetensors: entry of x lacks dtype"),
        ({"x": ENTRY | {"dtype": {}}}, bytes(8), "x.safetensors: entry of x lacks dtype"),
        ({"x": ENTRY | {"shape": {}}}, bytes(8), "x.safetensors: entry of x lacks dtype"),
        ({"x": ENTRY | {"shape": [True, 2]}}, bytes(8), "x.safetensors: entry of x lacks dtype"),
        (b'{"x": %s}' % (b"9" * 5000), b"", "x.safetensors is not JSON"),
        ({"x": ENTRY, "y": ENTRY}, bytes(8), "y starts at byte 0; expected 8"),
        ({"x": ENTRY | {"data_offsets": [8, 16]}}, bytes(16), "starts at byte 8; expected 0"),
    ],
)
def test_headers_that_lie(tmp_path: pathlib.Path, header: Any, values: bytes, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        read_file(write_raw(tmp_path / "x.safetensors", header, values))


def test_a_name_listed_twice_among_many_is_found_at_once(tmp_path: pathlib.Path) -> None:
    header = ("{" + ", ".join(f'"{n % 30_000}": 1' for n in range(30_001)) + "}").encode()
    path, start = write_raw(tmp_path / "x.safetensors", header, b""), time.process_time()
    with pytest.raises(ConversionError, match="lists 0 twice"):
        read_file(path)
    assert time.process_time() - start < 2  # each name counted by itself takes ten seconds


def test_a_header_of_more_tensors_than_any_model_has(tmp_path: pathlib.Path) -> None:
    """Refused before it is parsed, which would take ten times its size in memory."""
    header = {f"x{n}": ENTRY | {"shape": [0], "data_offsets": [0, 0]} for n in range(150_000)}
    path = write_raw(tmp_path / "x.safetensors", header, b"")
    with pytest.raises(ConversionError, match=r"header of \d+ bytes \(at most 8388608\)"):
        read_file(path)


def test_a_pipe_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(ConversionError, match=r"x\.safetensors is not a file"):
        read_file(tmp_path / "x.safetensors")


def test_a_header_longer_than_the_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(ConversionError, match="no whole safetensors file"):
        read_file(tmp_path / "x")


class TestIndex:
    """What an index may not say."""

    @pytest.fixture
    def folder(self, tmp_path: pathlib.Path) -> pathlib.Path:
        write(tmp_path, {name: TENSORS[name] for name in ("a.weight", "b.weight")}, shard_bytes=8)
        assert len(list(tmp_path.iterdir())) == 3
        return tmp_path

    def edit(self, folder: pathlib.Path, **changes: str | None) -> None:
        index = json.loads((folder / INDEX_NAME).read_text())
        index["weight_map"] = {
            name: file for name, file in (index["weight_map"] | changes).items() if file
        }
        (folder / INDEX_NAME).write_text(json.dumps(index))

    def test_an_absent_shard(self, folder: pathlib.Path) -> None:
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(ConversionError, match="1 absent of 2 shards: model-00002-of-00002"):
            read_folder(folder)

    @pytest.mark.parametrize("outside", ["../x.safetensors", "/x.safetensors", "sub/x", "..", ""])
    def test_a_path_out_of_the_folder(self, folder: pathlib.Path, outside: str) -> None:
        index = {"weight_map": {"x": outside}}
        (folder / INDEX_NAME).write_text(json.dumps(index))
        with pytest.raises(ConversionError, match="outside its folder"):
            read_folder(folder)

    def test_a_tensor_that_is_not_listed(self, folder: pathlib.Path) -> None:
        (folder / "extra").mkdir()
        write(folder / "extra", TENSORS)
        (folder / "extra" / "model.safetensors").rename(folder / "third.safetensors")
        self.edit(folder, scalar="third.safetensors", empty="third.safetensors")
        with pytest.raises(ConversionError, match=r"not in the index for this file: a\.weight, b"):
            read_folder(folder)

    def test_a_tensor_that_is_not_there(self, folder: pathlib.Path) -> None:
        self.edit(folder, other="model-00001-of-00002.safetensors")
        with pytest.raises(ConversionError, match="not in the file: other"):
            read_folder(folder)

    def test_both_forms_at_once(self, folder: pathlib.Path) -> None:
        write(folder, TENSORS)
        with pytest.raises(ConversionError, match="both"):
            read_folder(folder)

    @pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": {"x": 1}}', "{"])
    def test_something_else(self, folder: pathlib.Path, text: str) -> None:
        (folder / INDEX_NAME).write_text(text)
        with pytest.raises(ConversionError, match=INDEX_NAME):
            read_folder(folder)

    def test_neither_form(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(FileNotFoundError, match="neither"):
            read_folder(tmp_path)
