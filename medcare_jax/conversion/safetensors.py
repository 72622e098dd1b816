"""Safetensors files and folders, read and written as streams.

A file is 8 bytes of header length, a JSON header (name -> dtype, shape, offsets) and the values.
We read it ourselves, because a file with a duplicated name or a block that nobody listed must be
refused, and because a slice should touch only its own bytes. No value is ever cast.
"""

import concurrent.futures
import hashlib
import json
import math
import os
import pathlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from medcare_jax.conversion.metadata import list_some, parse_object, read_object
from medcare_jax.conversion.tensors import (
    ConversionError,
    Index,
    LazyTensor,
    contiguous,
    row_blocks,
)

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_FLUSH_BYTES = 128 * 2**20
# A tensor takes a hundred bytes or two: some forty thousand of them, of which the largest models
# that are supported have two thousand. Each costs memory and time before anything is compared.
_MAX_HEADER_BYTES = 8 * 2**20


def read_file(path: str | os.PathLike[str]) -> dict[str, LazyTensor]:
    """The tensors of one safetensors file, by name.

    Args:
      path: The file; it must stay in place while the tensors are read.

    Returns:
      Lazy tensors; each read returns an array of its own.

    Raises:
      FileNotFoundError: No such file.
      ConversionError: A truncated file or a header that does not describe its bytes.
    """
    path = pathlib.Path(path)
    header, start = _read_header(path)
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, fields) for name, fields in header.items()}
    _check_layout(path, entries, path.stat().st_size - start)
    return {
        name: _lazy(path, start + offset, dtype, shape)
        for name, (offset, dtype, shape) in entries.items()
    }


def read_folder(folder: str | os.PathLike[str]) -> dict[str, LazyTensor]:
    """The tensors of a Hugging Face folder: one `model.safetensors`, or an index and its shards.

    Raises:
      FileNotFoundError: Neither file is there.
      ConversionError: The index names a shard that is absent or lies outside the folder; index
        and shards disagree; a tensor is in two shards; both forms are present.
    """
    folder = pathlib.Path(folder)
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if index.exists() and single.exists():
        raise ConversionError(
            f"{folder} holds both {SINGLE_NAME} and {INDEX_NAME}; remove the one that is stale"
        )
    if single.exists():
        return read_file(single)
    if not index.exists():
        raise FileNotFoundError(f"{folder} holds neither {SINGLE_NAME} nor {INDEX_NAME}")
    return _read_shards(folder, _weight_map(index))


def write_file(path: pathlib.Path, tensors: Mapping[str, LazyTensor]) -> str:
    """Writes one safetensors file, a few rows in memory at a time; same input, same bytes.

    Returns:
      The sha256 of what was written.
    """
    names = _file_order(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise ConversionError(f"{name} has dtype {tensor.dtype}, which safetensors lacks")
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _Writer(path) as writer:
        writer.write(memoryview(struct.pack("<Q", len(text)) + text))
        for name in names:
            for values in _blocks(tensors[name]):
                writer.write(contiguous(values).reshape(-1).view(np.uint8).data)
        return writer.finish()


class _Writer:
    """A file that is hashed as it is written, and that goes to disk while more is being read."""

    def __init__(self, path: pathlib.Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._pool = concurrent.futures.ThreadPoolExecutor(2)
        self._hashing: concurrent.futures.Future[None] | None = None
        self._flushing: concurrent.futures.Future[None] | None = None
        self._unflushed = 0

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._file.close()

    def write(self, block: memoryview) -> None:
        """Appends a block, which must not change any more."""
        self._wait(self._hashing)
        self._hashing = self._pool.submit(self._digest.update, block)
        self._file.write(block)
        self._unflushed += len(block)
        if self._unflushed > _FLUSH_BYTES and (self._flushing is None or self._flushing.done()):
            self._wait(self._flushing)
            self._file.flush()
            self._flushing = self._pool.submit(os.fdatasync, self._file.fileno())
            self._unflushed = 0

    def finish(self) -> str:
        """The sha256 of all that was written, once it is on disk."""
        self._wait(self._hashing)
        self._wait(self._flushing)
        self._file.flush()
        os.fdatasync(self._file.fileno())
        return self._digest.hexdigest()

    def _wait(self, work: "concurrent.futures.Future[None] | None") -> None:
        """Until a piece of work is done; raises what it raised."""
        if work is not None:
            work.result()


def write_folder(
    folder: pathlib.Path, tensors: Mapping[str, LazyTensor], *, shard_bytes: int
) -> dict[str, str]:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` and their index.

    Args:
      folder: An existing folder, usually that of `atomic.new_folder`.
      tensors: What to write; the order decides which shard a tensor goes to.
      shard_bytes: Most bytes of values in a file; a larger tensor gets a file of its own.

    Returns:
      The sha256 of each file of weights, by name.
    """
    shards = _plan_shards(tensors, shard_bytes)
    if len(shards) == 1:
        return {SINGLE_NAME: write_file(folder / SINGLE_NAME, tensors)}
    weight_map, digests = {}, {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        part = {name: tensors[name] for name in names}
        digests[file_name] = write_file(folder / file_name, part)
        weight_map.update(dict.fromkeys(names, file_name))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
    return digests


def read_along(tensors: Mapping[str, LazyTensor], *, shard_bytes: int) -> None:
    """Reads what `write_folder` reads, in its order, and keeps nothing.

    For the processes that do not write, where arrays lie across processes: reading them takes all.
    """
    for names in _plan_shards(tensors, shard_bytes):
        for name in _file_order({name: tensors[name] for name in names}):
            for _ in _blocks(tensors[name]):
                pass


def _file_order(tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Names in the order of a file: wide dtypes first keeps every block aligned to its dtype."""
    return sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)


def _blocks(tensor: LazyTensor) -> Iterator[np.ndarray]:
    """A tensor's values from the first to the last, a few rows at a time."""
    if not tensor.shape:
        yield tensor[...]
        return
    for rows in row_blocks(tensor):
        yield tensor[rows]


def _plan_shards(tensors: Mapping[str, LazyTensor], shard_bytes: int) -> list[list[str]]:
    """Names per shard, in order, each shard filled up to the limit."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _read_header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """The parsed header and the offset at which values start."""
    size = path.stat().st_size
    if not path.is_file():  # a pipe would be waited for without end
        raise ConversionError(f"{path} is not a file; fetch it again")
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise ConversionError(
                f"{path} is no whole safetensors file: {size} bytes, header of {length} bytes (at "
                f"most {_MAX_HEADER_BYTES})"
            )
        text = file.read(length)
    return parse_object(text, path), 8 + length


def _entry(
    path: pathlib.Path, name: str, fields: Any
) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
    """Offset, dtype and shape of a tensor, checked against its number of bytes."""
    try:
        kind, shape, (start, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
        plain = isinstance(kind, str) and isinstance(shape, list)
        plain = plain and all(type(size) is int and size >= 0 for size in (*shape, start, end))
    except (KeyError, TypeError, ValueError):
        plain = False
    if not plain:
        raise ConversionError(f"{path}: entry of {name} lacks dtype, shape or data_offsets")
    if kind not in _DTYPES:
        raise ConversionError(f"{path}: {name} has dtype {kind}; known are {', '.join(_DTYPES)}")
    expected = math.prod(shape) * _DTYPES[kind].itemsize
    if end - start != expected:
        raise ConversionError(
            f"{path}: {name} {kind}{shape} needs {expected} bytes, its offsets span {end - start}"
        )
    return start, _DTYPES[kind], tuple(shape)


def _check_layout(
    path: pathlib.Path,
    entries: Mapping[str, tuple[int, np.dtype[Any], tuple[int, ...]]],
    size: int,
) -> None:
    """Raises unless the tensors fill the values' bytes without overlap or hole."""
    end = 0
    # Of tensors at one place, those without values come first.
    for start, nbytes, name in sorted(
        (start, math.prod(shape) * dtype.itemsize, name)
        for name, (start, dtype, shape) in entries.items()
    ):
        if start != end:
            raise ConversionError(f"{path}: {name} starts at byte {start}; expected {end}")
        end = start + nbytes
    if end != size:
        raise ConversionError(
            f"{path} is {'truncated' if size < end else 'too long'}: the header describes {end} "
            f"bytes of values, the file holds {size}; fetch it again"
        )


def _lazy(
    path: pathlib.Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> LazyTensor:
    """A tensor read from its place in the file."""

    def read(index: Index) -> np.ndarray:
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype)[index]
        if shape and all(
            part == slice(0, size) for part, size in zip(index[1:], shape[1:], strict=True)
        ):
            return _read_rows(path, offset, dtype, shape, index[0])
        if not shape:
            return _read_rows(path, offset, dtype, (1,), slice(0, 1)).reshape(())
        # By way of a few MiB of whole rows: a device's columns cost no more memory than they have.
        block = np.empty([part.stop - part.start for part in index], dtype)
        rows = LazyTensor((block.shape[0], *shape[1:]), dtype, read)
        for here in row_blocks(rows):
            some = slice(index[0].start + here.start, index[0].start + here.stop)
            whole = _read_rows(path, offset, dtype, shape, some)
            block[here] = whole[(slice(None), *index[1:])]
        return block

    return LazyTensor(shape, dtype, read)


def _read_rows(
    path: pathlib.Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], rows: slice
) -> np.ndarray:
    """Whole rows, which lie together: a plain read is twice as fast as faulting pages in."""
    nbytes = math.prod(shape[1:]) * dtype.itemsize
    count = max(rows.stop - rows.start, 0)
    data = np.fromfile(path, np.uint8, count=count * nbytes, offset=offset + rows.start * nbytes)
    return data.view(dtype).reshape(count, *shape[1:])


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    """Which shard holds which tensor, with shard names that stay inside the folder."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise ConversionError(f"{index} has no weight_map from tensor names to file names")
    names = set(weight_map.values())
    outside = sorted(file for file in names if not re.fullmatch(r"[^/\\]*[^/\\.][^/\\]*", file))
    if outside:
        raise ConversionError(f"{index} names files outside its folder: {list_some(outside)}")
    return weight_map


def _read_shards(folder: pathlib.Path, weight_map: Mapping[str, str]) -> dict[str, LazyTensor]:
    """The tensors of all shards, in agreement with the index both ways."""
    files = sorted(set(weight_map.values()))
    absent = [file for file in files if not (folder / file).exists()]
    if absent:
        raise ConversionError(
            f"{folder / INDEX_NAME} names {len(absent)} absent of {len(files)} shards: "
            f"{list_some(absent)}; fetch them again"
        )
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        shard = read_file(folder / file)
        unlisted = sorted(name for name in shard if weight_map.get(name) != file)
        missing = sorted(
            name for name, owner in weight_map.items() if owner == file and name not in shard
        )
        if unlisted or missing:
            raise ConversionError(
                f"{folder / file} and {INDEX_NAME} disagree; not in the index for this file: "
                f"{list_some(unlisted)}; not in the file: {list_some(missing)}"
            )
        tensors.update(shard)
    return tensors
