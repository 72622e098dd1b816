"""Grouped-query attention with rotary positions, segment masks and an optional key-value cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from medcare_jax.models.families import DecoderSettings, RopeScaling
from medcare_jax.shapes import AttentionMask, Keys, Positions, Queries, Segments


class KVCache(NamedTuple):
    """Keys and values of the tokens seen so far; slot p of a row belongs to its position p.

    Attributes:
      keys: [l, b, s, k, h].
      values: [l, b, s, k, h].
      segments: [b, s] int32; 0 is an empty slot.
    """

    keys: Float[Array, "l b s k h"]
    values: Float[Array, "l b s k h"]
    segments: Int[Array, "b s"]


def make_cache(settings: DecoderSettings, batch: int, length: int, dtype: jnp.dtype) -> KVCache:
    """An empty cache for `batch` rows of up to `length` tokens."""
    shape = (settings.num_layers, batch, length, settings.num_kv_heads, settings.head_dim)
    return KVCache(
        jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch, length), jnp.int32)
    )


def write_slots(slots: Array, positions: Positions, new: Array) -> Array:
    """Puts [b, t, ...] entries into the slots [b, s, ...] that their positions name.

    Positions of a row must differ: of two entries for one slot, either may stay.
    """
    rows = jnp.arange(positions.shape[0])[:, None]
    return slots.at[rows, positions].set(new.astype(slots.dtype))


def packed_mask(segments: Segments) -> AttentionMask:
    """Which tokens of a row see which: earlier or the same, and of the same segment."""
    index = jnp.arange(segments.shape[1])
    causal = index[None, :, None] >= index[None, None, :]
    return causal & (segments[:, :, None] == segments[:, None, :])


def cached_mask(positions: Positions, segments: Segments, slots: Segments) -> AttentionMask:
    """Which slots of the cache a query sees: up to its position, and of the same segment."""
    index = jnp.arange(slots.shape[1])
    causal = positions[:, :, None] >= index[None, None, :]
    return causal & (segments[:, :, None] == slots[:, None, :])


def attend(q: Queries, k: Keys, v: Keys, mask: AttentionMask, *, implementation: str) -> Queries:
    """Softmax attention of grouped queries; [b, t, n, h] like q."""
    with jax.numpy_dtype_promotion("standard"):  # JAX itself promotes the scores to float32
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask[:, None], implementation=implementation
        )


def rope_frequencies(settings: DecoderSettings) -> Float[Array, " h/2"]:
    """Angle per position of each pair of head dimensions, radians, float32."""
    # Outside the compiled program, whose power function rounds in another way than PyTorch's.
    with jax.ensure_compile_time_eval():
        exponents = jnp.arange(0, settings.head_dim, 2, dtype=jnp.float32) / settings.head_dim
        frequencies = 1.0 / settings.rope_theta**exponents
    scaling = settings.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    return _llama3_frequencies(frequencies, scaling)


def _llama3_frequencies(frequencies: Array, scaling: RopeScaling) -> Array:
    """Long wavelengths slowed by the factor, short ones kept, a ramp between (Llama 3.1)."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * jnp.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = jnp.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)


def rotate(
    x: Float[Array, "b t n h"], positions: Positions, frequencies: Float[Array, " h/2"]
) -> Float[Array, "b t n h"]:
    """Rotary positions in the half-split layout: dimension i pairs with i + h/2. In float32.

    Source: Su et al., RoFormer, arXiv:2104.09864.
    """
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)
