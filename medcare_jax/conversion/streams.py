"""Folding and rounding while tensors stream by: nothing whole is ever in memory.

`models.folding.fold` does the same to parameters that are on devices; both call `fold_factors`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from medcare_jax.conversion.tensors import ConversionError, Index, LazyTensor, cast
from medcare_jax.models.lora import fold_factors

_FLOAT32 = np.dtype(np.float32)


class Delta(NamedTuple):
    """A low-rank addition to a stacked kernel: scale · lora_a lora_b.

    Attributes:
      lora_a: [l, in, r], float32.
      lora_b: [l, r, out], float32.
      scale: What the product is multiplied by.
    """

    lora_a: Float[Array, "l i r"]
    lora_b: Float[Array, "l r o"]
    scale: float


@dataclasses.dataclass
class Rounding:
    """Casts that remember the worst of them.

    Attributes:
      largest: The largest |rounded - exact| / |exact| so far, over values that are not 0.
      where: The tensor that it was found in.
    """

    largest: float = 0.0
    where: str = ""

    def cast(self, tensor: LazyTensor, dtype: np.dtype[Any] | None, *, name: str) -> LazyTensor:
        """The tensor in another dtype; None leaves it alone. Errors as `tensors.cast`."""
        if dtype is None or dtype == tensor.dtype:
            return tensor

        def read(index: Index) -> np.ndarray:
            exact = tensor[index]
            # As a tensor of its own, so that the source is read once.
            once = LazyTensor(tensor.shape, tensor.dtype, lambda _: exact)
            rounded = cast(once, dtype, name=name)[index]
            self._look(exact.astype(_FLOAT32), rounded.astype(_FLOAT32), name)
            return rounded

        return LazyTensor(tensor.shape, dtype, read)

    def _look(self, exact: np.ndarray, rounded: np.ndarray, name: str) -> None:
        """Remembers the error of a block if it is the largest."""
        finite = np.isfinite(exact) & (exact != 0)
        error = np.subtract(rounded, exact, out=np.zeros_like(exact), where=finite)
        np.divide(error, exact, out=error, where=finite)
        worst = float(np.max(np.abs(error), initial=0.0))
        if worst > self.largest:
            self.largest, self.where = worst, name


def folded(kernel: LazyTensor, deltas: Sequence[Delta]) -> LazyTensor:
    """A stacked kernel [l, in, out] with deltas added, float32, computed when it is read.

    Only the rows and columns that are asked for are computed.
    """
    lora_a = np.concatenate([np.asarray(delta.lora_a, _FLOAT32) for delta in deltas], axis=-1)
    # One product for all: each delta's own scale, relative to the first, goes into its B.
    scale = deltas[0].scale
    lora_b = np.concatenate(
        [_rescaled(np.asarray(delta.lora_b, _FLOAT32), delta.scale, scale) for delta in deltas],
        axis=-2,
    )

    def read(index: Index) -> np.ndarray:
        layers, rows, columns = index
        values = kernel[index].astype(_FLOAT32)
        for place, layer in enumerate(range(layers.start, layers.stop)):
            values[place] = _fold(
                jnp.asarray(values[place]),
                jnp.asarray(lora_a[layer, rows]),
                jnp.asarray(lora_b[layer, :, columns]),
                scale=scale,
            )
        return values

    return LazyTensor(kernel.shape, _FLOAT32, read)


def fold_leaves(
    leaves: Mapping[str, LazyTensor],
    deltas: Mapping[str, Sequence[Delta]],
    *,
    dtype: np.dtype[Any] | None,
    rounding: Rounding,
) -> dict[str, LazyTensor]:
    """Base leaves with deltas folded into their kernels, every leaf rounded at most once.

    Args:
      leaves: The base by path.
      deltas: What to add, by the path of the projection.
      dtype: Of every leaf of the result; by default each leaf keeps its own.
      rounding: Told of every cast.

    Raises:
      ConversionError: A delta for a projection that the base has not, or of another shape.
    """
    check_deltas(leaves, deltas)
    result = {}
    for path, leaf in leaves.items():
        owner, _, name = path.rpartition("/")
        wide = folded(leaf, deltas[owner]) if name == "kernel" and deltas.get(owner) else leaf
        result[path] = rounding.cast(wide, dtype or leaf.dtype, name=path)
    return result


def check_deltas(leaves: Mapping[str, LazyTensor], deltas: Mapping[str, Sequence[Delta]]) -> None:
    """Raises unless every delta has a kernel of its shape."""
    for owner, found in deltas.items():
        kernel = leaves.get(f"{owner}/kernel")
        if kernel is None:
            raise ConversionError(f"the adapter has {owner}, the base has no such projection")
        for delta in found:
            shape = (*delta.lora_a.shape[:2], delta.lora_b.shape[-1])
            if shape != kernel.shape:
                raise ConversionError(
                    f"the adapter of {owner} is for {list(shape)}, the base has "
                    f"{list(kernel.shape)} (layers, in, out); it belongs to another base"
                )


def _rescaled(lora_b: np.ndarray, scale: float, common: float) -> np.ndarray:
    """B times scale / common; the same array where they are equal."""
    return lora_b if scale == common else lora_b * np.float32(scale / common)


_fold = jax.jit(fold_factors, static_argnames="scale")
