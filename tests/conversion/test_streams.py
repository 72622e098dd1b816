"""Folding and rounding in streams: the same numbers as on devices, from the blocks asked for."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from medcare_jax.conversion.streams import Delta, Rounding, check_deltas, fold_leaves, folded
from medcare_jax.conversion.tensors import ConversionError, LazyTensor, from_array
from medcare_jax.models.folding import fold
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, flatten, merge
from medcare_jax.settings import AdapterSettings

L, IN, OUT, R = 3, 7, 5, 2
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return draw(seed, L, IN, R), draw(seed + 1, L, R, OUT)


def test_one_fold_streamed_is_the_other_on_devices() -> None:
    kernel = draw(0, L, IN, OUT).astype(BFLOAT16)
    adapters = AdapterSettings(rank=R, alpha=3.0)
    parts = {
        name: {"up": dict(zip(("lora_a", "lora_b"), pair(seed), strict=True))}
        for name, seed in ((KNOWLEDGE, 1), (ALIGNMENT, 3))
    }
    on_devices = fold(merge({BASE: {"up": {"kernel": jnp.asarray(kernel)}}, **parts}), adapters)
    deltas = [Delta(*pair(seed), adapters.scale) for seed in (1, 3)]
    leaves = {"up/kernel": from_array(kernel), "norm/scale": from_array(draw(9, L, IN))}
    streamed = fold_leaves(leaves, {"up": deltas}, dtype=None, rounding=Rounding())
    found = streamed["up/kernel"][...]
    assert found.dtype == BFLOAT16
    np.testing.assert_array_equal(found, np.asarray(flatten(on_devices)["up/kernel"]))
    assert streamed["norm/scale"] is leaves["norm/scale"]


def test_a_block_is_computed_from_its_rows_and_columns_alone() -> None:
    kernel = draw(0, L, IN, OUT)
    asked = []

    def read(index: tuple[slice, ...]) -> np.ndarray:
        asked.append(index)
        return kernel[index]

    lazy = LazyTensor(kernel.shape, kernel.dtype, read)
    first, second = pair(1), pair(3)
    tensor = folded(lazy, [Delta(*first, 2.0), Delta(*second, 0.5)])
    block = tensor[1:3, 2:6, 1:4]
    assert asked == [(slice(1, 3), slice(2, 6), slice(1, 4))]
    exact = (kernel + 2.0 * first[0] @ first[1] + 0.5 * second[0] @ second[1])[1:3, 2:6, 1:4]
    np.testing.assert_allclose(block, exact, rtol=0, atol=2e-6)


def test_the_largest_relative_error_and_where() -> None:
    rounding = Rounding()
    exact = np.asarray([[1.0, 1.0 + 2**-9], [0.0, np.inf]], np.float32)
    half = rounding.cast(from_array(exact), BFLOAT16, name="a")
    assert rounding.largest == 0  # nothing has been read yet
    np.testing.assert_array_equal(half[...].astype(np.float32), [[1, 1], [0, np.inf]])
    assert rounding.largest == pytest.approx(2**-9 / (1 + 2**-9))
    _ = rounding.cast(from_array(np.float32([1.0, 2.0])), BFLOAT16, name="b")[...]
    assert rounding.where == "a"
    lost = rounding.cast(from_array(np.float32([1e-9])), np.dtype(np.float16), name="c")
    assert lost[...] == 0
    assert (rounding.largest, rounding.where) == (1.0, "c")
    same = from_array(exact)
    assert rounding.cast(same, exact.dtype, name="d") is same


def test_what_does_not_fit() -> None:
    leaves = {"up/kernel": from_array(draw(0, L, IN, OUT))}
    delta = Delta(*pair(1), 1.0)
    with pytest.raises(ConversionError, match="the adapter has down, the base has no such"):
        check_deltas(leaves, {"down": [delta]})
    other = Delta(draw(0, L + 1, IN, R), draw(1, L + 1, R, OUT), 1.0)
    with pytest.raises(ConversionError, match=r"is for \[4, 7, 5\], the base has \[3, 7, 5\]"):
        fold_leaves(leaves, {"up": [delta, other]}, dtype=None, rounding=Rounding())
