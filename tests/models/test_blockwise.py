"""Attention in blocks against all scores at once, and what it does not read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcare_jax.models.attention import attend, packed_mask
from medcare_jax.models.blockwise import BLOCK, attend_blocks, visible_blocks


def draw(segments, *, heads=4, kv_heads=2, width=8, dtype=jnp.float32, seed=0):
    """Queries, keys, values and a cotangent for rows of segments."""
    random = np.random.default_rng(seed)
    shape = np.shape(segments)
    sizes = (heads, kv_heads, kv_heads, heads)
    return [jnp.asarray(random.standard_normal((*shape, n, width)), dtype) for n in sizes]


def both(segments, **sizes):
    """Output and gradients in blocks and at once."""
    q, k, v, down = draw(segments, **sizes)
    segments = jnp.asarray(segments, jnp.int32)

    @jax.jit
    def ours(q, k, v):
        return attend_blocks(q, k, v, visible_blocks(segments), residual_name="out")

    @jax.jit
    def expected(q, k, v):
        return attend(q, k, v, packed_mask(segments), implementation="xla")

    return [(out, *pull(down)) for out, pull in (jax.vjp(f, q, k, v) for f in (ours, expected))]


def packed(lengths, total):
    """One row of segments of these lengths, then padding."""
    row = np.repeat(np.arange(1, len(lengths) + 1), lengths)[:total]
    return np.pad(row, (0, total - len(row)))


@given(
    st.lists(st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=6), min_size=2, max_size=2),
    st.integers(1, 3 * BLOCK + 5),
    st.sampled_from([(1, 1), (4, 2), (3, 3)]),
)
@settings(max_examples=10, deadline=None)
def test_output_and_gradients_are_those_of_all_scores_at_once(rows, total, heads):
    segments = np.stack([packed(lengths, total) for lengths in rows])
    ours, expected = both(segments, heads=heads[0], kv_heads=heads[1])
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * max(1, np.abs(other).max()))


def test_segments_that_come_back_are_seen_again():
    """Packing never makes such rows, but the mask has a meaning for them."""
    segments = np.repeat([[1, 2, 1, 3]], BLOCK, axis=1)
    assert visible_blocks(jnp.asarray(segments)).first.tolist() == [0, 1, 0, 3]
    ours, expected = both(segments)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6)


def test_bfloat16_is_as_near_to_float32_as_all_scores_at_once():
    segments = np.stack([packed([200, 30, 100], 384), packed([384], 384)])
    exact = both(segments)[1]
    ours, dense = both(segments, dtype=jnp.bfloat16)
    for one, other, true in zip(ours, dense, exact, strict=True):
        assert one.dtype == jnp.bfloat16
        off = [
            np.square(np.asarray(each, np.float32) - true).mean() ** 0.5 for each in (one, other)
        ]
        assert off[0] <= 1.1 * off[1]


def test_blocks_of_earlier_dialogues_and_of_later_tokens_are_not_read():
    segments = np.repeat([[1, 2, 2, 3]], BLOCK, axis=1)
    q, k, v, down = draw(segments)
    rotten = [each.at[:, :BLOCK].set(jnp.nan).at[:, 3 * BLOCK :].set(jnp.nan) for each in (k, v)]
    seen = visible_blocks(jnp.asarray(segments))
    out, pull = jax.vjp(lambda *x: attend_blocks(*x, seen, residual_name="out"), q, *rotten)
    gradients = pull(down.at[:, :BLOCK].set(0).at[:, 3 * BLOCK :].set(0))
    middle = slice(BLOCK, 3 * BLOCK)
    assert all(np.isfinite(each[:, middle]).all() for each in (out, *gradients))
    dense = attend(q, *rotten, packed_mask(jnp.asarray(segments)), implementation="xla")
    assert np.isnan(dense[:, middle]).any()


@pytest.mark.parametrize("length", [2 * BLOCK, 8 * BLOCK])
def test_no_buffer_holds_all_scores(length):
    segments = jnp.ones((1, length), jnp.int32)
    q, k, v, down = draw(segments, heads=1, kv_heads=1)
    seen = visible_blocks(segments)

    def gradients(q, k, v):
        return jax.vjp(lambda *x: attend_blocks(*x, seen, residual_name="out"), q, k, v)[1](down)

    temporary = jax.jit(gradients).lower(q, k, v).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 16 * 4 * length * 8 + 16 * 4 * BLOCK**2
