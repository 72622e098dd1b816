"""Lazy tensors: every block that is read equals the block of the whole."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcare_jax.conversion.tensors import (
    DTYPES,
    ConversionError,
    LazyTensor,
    cast,
    concatenate,
    contiguous,
    from_array,
    separate,
    stack,
    transpose,
    unstack,
)

WHOLE = np.arange(3 * 4 * 6, dtype=np.float32).reshape(3, 4, 6)


def lazy_views() -> dict[str, tuple[LazyTensor, np.ndarray]]:
    import jax.numpy as jnp

    tensor = from_array(WHOLE)
    layers = [from_array(layer) for layer in WHOLE]
    return {
        "numpy": (tensor, WHOLE),
        "jax": (from_array(jnp.asarray(WHOLE)), WHOLE),
        "transposed": (transpose(tensor), WHOLE.T),
        "stacked": (stack(layers), WHOLE),
        "stack of transposed": (stack([transpose(x) for x in layers]), WHOLE.swapaxes(1, 2)),
        "unstacked": (stack(unstack(tensor)), WHOLE),
        "joined": (concatenate(separate(tensor, 3, axis=2), axis=2), WHOLE),
        "part": (separate(tensor, 2, axis=1)[1], WHOLE[:, 2:]),
        "half": (cast(tensor, DTYPES["bfloat16"], name="x"), WHOLE.astype(ml_dtypes.bfloat16)),
    }


@pytest.mark.parametrize("name", lazy_views())
@given(bounds=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=3))
def test_any_block_is_that_of_the_whole(name: str, bounds: list[tuple[int, int]]) -> None:
    tensor, whole = lazy_views()[name]
    index = tuple(slice(min(pair), max(pair)) for pair in bounds)
    block = tensor[index]
    assert block.dtype == whole.dtype == tensor.dtype
    np.testing.assert_array_equal(block, whole[index])
    assert tensor[...].shape == whole.shape == tensor.shape
    assert tensor.nbytes == whole.nbytes


def test_a_block_of_a_stack_reads_only_its_layers() -> None:
    read: list[int] = []

    def layer(number: int) -> LazyTensor:
        def values(index: tuple[slice, ...]) -> np.ndarray:
            read.append(number)
            return WHOLE[number][index]

        return LazyTensor((4, 6), WHOLE.dtype, values)

    tensor = stack([layer(number) for number in range(3)])
    np.testing.assert_array_equal(tensor[1:2, 0:3], WHOLE[1:2, 0:3])
    np.testing.assert_array_equal(unstack(tensor)[2][...], WHOLE[2])
    assert read == [1, 2]


def test_wide_transposed_blocks_are_copied_whole() -> None:
    wide = np.random.default_rng(0).standard_normal((301, 3)).T
    assert not wide.flags.c_contiguous
    np.testing.assert_array_equal(contiguous(wide), wide)
    assert contiguous(wide).flags.c_contiguous
    np.testing.assert_array_equal(stack([from_array(wide)] * 2)[...], np.stack([wide, wide]))


def test_cast_rounds_once_to_nearest_even() -> None:
    exact = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    rounded = cast(from_array(exact), DTYPES["bfloat16"], name="x")[...]
    assert rounded.astype(np.float32).tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7]


def test_cast_keeps_infinities_but_never_makes_them() -> None:
    assert cast(from_array(np.array([np.inf, np.nan])), DTYPES["float16"], name="x")[0:1] == np.inf
    big = cast(from_array(np.array([7e4], np.float32)), DTYPES["float16"], name="up_proj")
    with pytest.raises(ConversionError, match="up_proj has finite values beyond"):
        big[...]
