"""Masks as truth tables, the cache's slots, and attention to them."""

import jax.numpy as jnp
import numpy as np

from medcare_jax.models.attention import (
    KVCache,
    attend,
    attend_cached,
    cached_mask,
    make_cache,
    packed_mask,
    write_slots,
)
from tests.helpers import TINY


def test_packed_mask():
    segments = jnp.array([[1, 1, 2, 2, 0]], jnp.int32)
    assert packed_mask(segments)[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],  # padding sees padding: a row that saw nothing would be NaN
    ]


def test_cached_mask():
    positions = jnp.array([[0, 1, 2], [3, 4, 5]], jnp.int32)
    segments = jnp.array([[1, 1, 0], [1, 1, 1]], jnp.int32)
    slots = jnp.array([[1, 1, 0, 0, 0], [1, 0, 1, 1, 1]], jnp.int32)
    assert cached_mask(positions, segments, slots).astype(int).tolist() == [
        [[0, 0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0, 1]],
        [[1, 0, 1, 0, 0, 1, 0, 0], [1, 0, 1, 0, 0, 1, 1, 0], [1, 0, 1, 0, 0, 1, 1, 1]],
    ]


def test_rows_of_tokens_share_a_row_of_the_cache():
    positions, segments = jnp.full((4, 1), 2, jnp.int32), jnp.ones((4, 1), jnp.int32)
    slots = jnp.array([[1, 0, 1], [1, 1, 0]], jnp.int32)
    mask = cached_mask(positions, segments, slots).astype(int)
    assert mask[:, 0].tolist() == [[1, 0, 0, 1]] * 2 + [[1, 1, 0, 1]] * 2


def test_write_slots_puts_each_row_where_its_positions_say():
    """Three layers, two rows of two new tokens, one of them outside the cache."""
    cache = make_cache(TINY["qwen2"], 2, 5, jnp.bfloat16)
    shape = (3, 2, 2, 2, 6)
    keys = jnp.arange(144, dtype=jnp.float32).reshape(shape)
    new = KVCache(keys, -keys, jnp.array([[1, 2], [3, 4]], jnp.int32))
    written = write_slots(cache, jnp.array([[0, 1], [4, 5]], jnp.int32), new)
    expected = np.zeros((3, 2, 2, 5, 6))
    expected[:, 0, :, 0], expected[:, 0, :, 1] = keys[:, 0, :, 0], keys[:, 0, :, 1]
    expected[:, 1, :, 4] = keys[:, 1, :, 0]
    expected = jnp.asarray(expected, jnp.bfloat16)
    assert written.keys.dtype == jnp.bfloat16
    np.testing.assert_array_equal(written.keys, expected)
    np.testing.assert_array_equal(written.values, -expected)
    assert written.segments.tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 0, 3]]


def test_make_cache_is_empty_and_has_the_heads_of_keys():
    cache = make_cache(TINY["qwen2"], 8, 13, jnp.bfloat16)
    assert cache.keys.shape == cache.values.shape == (3, 8, 2, 13, 6)
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    assert cache.segments.shape == (8, 13)
    assert cache.segments.dtype == jnp.int32
    assert not any(np.asarray(leaf, np.float32).any() for leaf in cache)


def test_attention_to_a_cache_is_attention_to_all_keys_side_by_side():
    """Two rows of the cache, each read by three rows of two new tokens."""
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
    q, new = draw(6, 2, 4, 6), (draw(6, 2, 2, 6), draw(6, 2, 2, 6))
    cached = (draw(2, 2, 7, 6), draw(2, 2, 7, 6))
    mask = jnp.asarray(random.random((6, 2, 9)) < 0.6).at[:, :, 7].set(True)
    whole = [
        jnp.concatenate([jnp.repeat(old.swapaxes(1, 2), 3, axis=0), more], axis=1)
        for old, more in zip(cached, new, strict=True)
    ]
    expected = attend(q, *whole, mask, implementation="xla")
    np.testing.assert_allclose(attend_cached(q, cached, new, mask), expected, rtol=0, atol=1e-6)


def test_attend_is_grouped_masked_softmax():
    """Query heads 0 and 1 read key head 0, heads 2 and 3 key head 1."""
    random = np.random.default_rng(0)
    q = random.standard_normal((1, 5, 4, 6)).astype(np.float32)
    k, v = random.standard_normal((2, 1, 7, 2, 6)).astype(np.float32)
    mask = random.random((1, 5, 7)) < 0.6
    mask[:, :, 0] = True
    expected = np.zeros_like(q)
    for head in range(4):
        scores = q[0, :, head] @ k[0, :, head // 2].T / 6**0.5
        weights = np.where(mask[0], np.exp(scores), 0.0)
        expected[0, :, head] = weights / weights.sum(1, keepdims=True) @ v[0, :, head // 2]
    ours = attend(*map(jnp.asarray, (q, k, v, mask)), implementation="xla")
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
