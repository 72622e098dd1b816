"""Lazily read tensors: a shape, a dtype, and a way to read any block of the values.

Every format is read into a dict from name to `LazyTensor`, and every writer takes one. What lies
between (transposing, stacking layers, casting) composes the *reading*, so a conversion streams:
nothing is in memory but the tensors being copied, and a device that needs a slice reads a slice.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from medcare_jax.agreement import fetch_block

Shape = tuple[int, ...]
Index = tuple[slice, ...]

_PANEL = 128
_BLOCK_BYTES = 8 * 2**20

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


class ConversionError(ValueError):
    """Files or trees that cannot be converted; says what was expected, what came, what to do."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor whose values are read when indexed.

    Attributes:
      shape: Its sizes.
      dtype: Its NumPy dtype (`ml_dtypes.bfloat16` for bf16).
      read: Called with one slice of step 1 per axis; returns that block.

    >>> tensor = from_array(np.arange(6).reshape(2, 3))
    >>> transpose(tensor)[0:2]
    array([[0, 3],
           [1, 4]])
    """

    shape: Shape
    dtype: np.dtype[Any]
    read: Callable[[Index], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: slice | Index | Any) -> np.ndarray:
        """The values of a block; `[...]` gives all."""
        given = () if index is Ellipsis else index if isinstance(index, tuple) else (index,)
        full = given + (slice(None),) * (len(self.shape) - len(given))
        # Start and stop explicit, so that no reader has to understand None or negative numbers.
        return self.read(
            tuple(
                slice(*part.indices(size)[:2]) for part, size in zip(full, self.shape, strict=True)
            )
        )


def row_blocks(tensor: LazyTensor, *, nbytes: int = _BLOCK_BYTES) -> Iterator[slice]:
    """Slices of the first axis that cut a tensor into blocks of about `nbytes`.

    >>> list(row_blocks(from_array(np.zeros((5, 4), np.float32)), nbytes=32))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    rows = tensor.shape[0]
    step = max(1, nbytes * rows // max(tensor.nbytes, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def from_array(array: np.ndarray | jax.Array) -> LazyTensor:
    """A lazy tensor over an array, which may be on devices: only the block that is read moves.

    Of an array that lies across processes all of them have to read the same blocks in one order.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return LazyTensor(
            tuple(array.shape), np.dtype(array.dtype), functools.partial(fetch_block, array)
        )
    if isinstance(array, jax.Array) and [device.platform for device in array.devices()] == ["cpu"]:
        array = np.asarray(array)  # a view: it is in this memory already

    def read(index: Index) -> np.ndarray:
        if isinstance(array, np.ndarray):
            return array[index]
        if not index:
            return np.asarray(array)
        first, size = index[0], index[0].stop - index[0].start
        # dynamic_slice takes the start as an operand: one compilation serves all layers.
        block = (
            array
            if size == array.shape[0]
            else jax.lax.dynamic_slice_in_dim(array, first.start, size)
        )
        return np.asarray(jax.device_get(block))[(slice(None), *index[1:])]

    return LazyTensor(tuple(array.shape), np.dtype(array.dtype), read)


def transpose(tensor: LazyTensor) -> LazyTensor:
    """The tensor with its axes reversed."""
    return LazyTensor(tensor.shape[::-1], tensor.dtype, lambda index: tensor[index[::-1]].T)


def stack(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """Tensors of one shape and dtype as one with a new leading axis (l).

    Reading allocates the block once and fills it layer by layer.
    """
    first = tensors[0]

    def read(index: Index) -> np.ndarray:
        chosen = tensors[index[0]]
        if len(chosen) == 1:  # a view: what unstacks this again has copied nothing
            return chosen[0][index[1:]][None]
        sizes = [part.stop - part.start for part in index[1:]]
        block = np.empty((len(chosen), *sizes), first.dtype)
        for layer, tensor in enumerate(chosen):
            copy_into(block[layer : layer + 1], tensor[index[1:]][None])
        return block

    return LazyTensor((len(tensors), *first.shape), first.dtype, read)


def contiguous(values: np.ndarray) -> np.ndarray:
    """The values with the last axis dense in memory; copied only if they are not so yet."""
    if values.flags.c_contiguous:
        return values
    block = np.empty(values.shape, values.dtype)
    copy_into(block, values)
    return block


def copy_into(block: np.ndarray, values: np.ndarray) -> None:
    """Copies values into a block of their shape.

    A transposed matrix is copied in panels of columns that fit the cache, which takes a fifth of
    the time of NumPy's own order.
    """
    width = values.shape[-1] if values.flags.c_contiguous else _PANEL
    for start in range(0, values.shape[-1], max(width, 1)):
        panel = (..., slice(start, start + width))
        block[panel] = values[panel]


def unstack(tensor: LazyTensor) -> list[LazyTensor]:
    """The tensors along the leading axis; the inverse of `stack`."""

    def layer_reader(layer: int) -> Callable[[Index], np.ndarray]:
        return lambda index: tensor[(slice(layer, layer + 1), *index)][0]

    return [
        LazyTensor(tensor.shape[1:], tensor.dtype, layer_reader(layer))
        for layer in range(tensor.shape[0])
    ]


def concatenate(tensors: Sequence[LazyTensor], axis: int) -> LazyTensor:
    """Tensors joined along an axis; for small ones, since reading a block reads all of them."""
    first = tensors[0]
    shape = list(first.shape)
    shape[axis] = sum(tensor.shape[axis] for tensor in tensors)
    return LazyTensor(
        tuple(shape),
        first.dtype,
        lambda index: np.concatenate([tensor[...] for tensor in tensors], axis)[index],
    )


def separate(tensor: LazyTensor, parts: int, axis: int) -> list[LazyTensor]:
    """Equal parts along an axis; the inverse of `concatenate`."""
    size = tensor.shape[axis] // parts
    shape = tensor.shape[:axis] + (size,) + tensor.shape[axis + 1 :]

    def part_reader(part: int) -> Callable[[Index], np.ndarray]:
        return lambda index: np.split(tensor[...], parts, axis)[part][index]

    return [LazyTensor(shape, tensor.dtype, part_reader(part)) for part in range(parts)]


def cast(tensor: LazyTensor, dtype: np.dtype[Any] | None, *, name: str) -> LazyTensor:
    """The tensor in another dtype, rounded to nearest even; None leaves it alone.

    Raises:
      ConversionError: When read, if a finite value does not fit the dtype (float16 ends at 65504).
    """
    if dtype is None or dtype == tensor.dtype:
        return tensor

    def read(index: Index) -> np.ndarray:
        values = tensor[index]
        with np.errstate(over="ignore"):
            result = values.astype(dtype)
        fits = np.isfinite(result)
        if not fits.all() and not np.array_equal(np.isfinite(values), fits):
            raise ConversionError(
                f"{name} has finite values beyond the range of {dtype}; convert to bfloat16 or "
                "float32"
            )
        return result

    return LazyTensor(tensor.shape, dtype, read)
