"""Grouped-query attention with segment masks and an optional key-value cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from medcare_jax.models.blockwise import BLOCK, Blocks, attend_blocks, visible_blocks
from medcare_jax.models.families import DecoderSettings
from medcare_jax.models.splash import is_cuttable, splash_attend
from medcare_jax.shapes import AttentionMask, Keys, Positions, Queries, Segments
from medcare_jax.sharding import current_platform


class KVCache(NamedTuple):
    """Keys and values of the tokens seen so far; slot p of a row belongs to its position p.

    Attributes:
      keys: [l, b, k, s, h].
      values: [l, b, k, s, h].
      segments: [b, s] int32; 0 is an empty slot.
    """

    keys: Float[Array, "l b k s h"]
    values: Float[Array, "l b k s h"]
    segments: Int[Array, "b s"]


def make_cache(settings: DecoderSettings, batch: int, length: int, dtype: jnp.dtype) -> KVCache:
    """An empty cache for `batch` rows of up to `length` tokens."""
    shape = (settings.num_layers, batch, settings.num_kv_heads, length, settings.head_dim)
    return KVCache(
        jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch, length), jnp.int32)
    )


def write_slots(cache: KVCache, positions: Positions, new: KVCache) -> KVCache:
    """The cache with the entries of t new tokens per row in the slots that their positions name.

    Positions of a row must differ: of two entries for one slot, either may stay. A position
    outside the cache is written nowhere.
    """
    rows = jnp.arange(positions.shape[0])[:, None]

    def write(slots: Array, entries: Array) -> Array:
        # Index arrays that a slice parts put their axes first: [b, t, l, k, h].
        entries = entries.transpose(1, 3, 0, 2, 4).astype(slots.dtype)
        return slots.at[:, rows, :, positions].set(entries, mode="drop")

    return KVCache(
        write(cache.keys, new.keys),
        write(cache.values, new.values),
        cache.segments.at[rows, positions].set(new.segments, mode="drop"),
    )


def packed_mask(segments: Segments) -> AttentionMask:
    """Which tokens of a row see which: earlier or the same, and of the same segment."""
    index = jnp.arange(segments.shape[1])
    causal = index[None, :, None] >= index[None, None, :]
    return causal & (segments[:, :, None] == segments[:, None, :])


def cached_mask(positions: Positions, segments: Segments, slots: Segments) -> AttentionMask:
    """What new tokens see, [b, t, s + t]: the slots before the first of them, then each other.

    Args:
      positions: of the new tokens, growing along a row.
      segments: of the new tokens.
      slots: segments of the cache, [c, s]; row i of b reads row i // (b / c).
    """
    slots = jnp.repeat(slots, positions.shape[0] // slots.shape[0], axis=0)
    index = jnp.arange(slots.shape[1])
    earlier = (index[None, None] < positions[:, :1, None]) & (
        segments[:, :, None] == slots[:, None, :]
    )
    causal = positions[:, :, None] >= positions[:, None, :]
    return jnp.concatenate(
        [earlier, causal & (segments[:, :, None] == segments[:, None, :])], axis=-1
    )


ATTENDED = "attended"
"""What remat policies call the output of attention."""


def choose_kernel(name: str, *, rows: int, length: int, heads: int) -> str:
    """The kernel for whole rows: the one that is named; for `auto` the best that can run here.

    Args:
      name: As in `compute.attention`.
      rows: Of the batch, which the mesh must be able to cut for splash.
      length: Of the rows; a single block spares nothing.
      heads: Of keys and values, which the mesh must be able to cut for splash.
    """
    if name != "auto":
        return name
    if current_platform() == "tpu":
        return "splash" if is_cuttable(rows, heads) else "xla"
    # Beside these loops the hand-over's messages between CPU devices (gloo) met in the wrong order,
    # so `auto` takes them only where a device is alone.
    mesh = jax.sharding.get_abstract_mesh()
    is_alone = current_platform() == "cpu" and (mesh.empty or mesh.size == 1)
    return "blocks" if is_alone and length > BLOCK else "xla"


Visible = AttentionMask | Segments | Blocks


def visible(segments: Segments, kernel: str) -> Visible:
    """What `attend_packed` has to know of which tokens see which: a mask, segments or blocks."""
    if kernel == "blocks":
        return visible_blocks(segments)
    return segments if kernel == "splash" else packed_mask(segments)


def attend_packed(q: Queries, k: Keys, v: Keys, seen: Visible, *, kernel: str) -> Queries:
    """Attention within packed rows, `seen` as `visible` makes it; [b, t, n, h] like q."""
    if isinstance(seen, Blocks):
        return attend_blocks(q, k, v, seen, residual_name=ATTENDED)
    if seen.ndim == 2:
        return splash_attend(q, k, v, seen, residual_name=ATTENDED)
    implementation = "cudnn" if kernel == "cudnn" else "xla"
    return checkpoint_name(attend(q, k, v, seen, implementation=implementation), ATTENDED)


def attend(q: Queries, k: Keys, v: Keys, mask: AttentionMask, *, implementation: str) -> Queries:
    """Softmax attention of grouped queries; [b, t, n, h] like q."""
    if implementation == "cudnn":
        with jax.numpy_dtype_promotion("standard"):  # JAX itself promotes the scores to float32
            return jax.nn.dot_product_attention(
                q, k, v, mask=mask[:, None], implementation=implementation
            )
    (b, t, n, h), heads = q.shape, k.shape[2]
    # Heads stand in front: on a CPU, XLA multiplies stacks of matrices fast only where their axes
    # lead.
    queries = q.reshape(b, t, heads, n // heads, h).transpose(0, 2, 3, 1, 4)
    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
    wide = {"preferred_element_type": jnp.float32}
    scores = jnp.einsum("bkmh,bksh->bkms", queries.reshape(b, heads, -1, h), keys, **wide)
    scores = (scores * h**-0.5).reshape(b, heads, n // heads, t, -1)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("bkms,bksh->bkmh", weights.reshape(b, heads, -1, k.shape[1]), values)
    return out.reshape(queries.shape).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def attend_cached(
    q: Queries,
    cached: tuple[Float[Array, "c k s h"], Float[Array, "c k s h"]],
    new: tuple[Keys, Keys],
    mask: AttentionMask,
) -> Queries:
    """Attention of new tokens to cached ones and to each other; [b, t, n, h] like q.

    The cache is read where it lies: neither joined with the new keys nor repeated for rows that
    share one of its rows, of which it may have fewer, c instead of b.

    Args:
      q: queries of the new tokens.
      cached: keys and values of one layer of a `KVCache`.
      new: keys and values of the new tokens, [b, t, k, h].
      mask: as `cached_mask` makes it.
    """
    keys, values = (slots.astype(q.dtype) for slots in cached)
    (b, t, n, h), (c, k, s, _) = q.shape, keys.shape
    o, g = b // c, n // k
    # The cache's own axes stand in front of all that meets it, as heads do in `attend`.
    queries = (q * jnp.asarray(h**-0.5, q.dtype)).reshape(c, o, t, k, g, h)
    queries = queries.transpose(0, 3, 1, 2, 4, 5)
    wide = {"preferred_element_type": jnp.float32}
    old = jnp.einsum("ckmh,cksh->ckms", queries.reshape(c, k, o * t * g, h), keys, **wide)
    entries = [slots.reshape(c, o, t, k, h) for slots in new]
    own = jnp.einsum("ckotgh,coukh->ckotgu", queries, entries[0], **wide)
    scores = jnp.concatenate([old.reshape(c, k, o, t, g, s), own], axis=-1)
    seen = mask.reshape(c, 1, o, t, 1, s + t)
    scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("ckms,cksh->ckmh", weights[..., :s].reshape(c, k, o * t * g, s), values)
    out = out.reshape(queries.shape)
    out = out + jnp.einsum("ckotgu,coukh->ckotgh", weights[..., s:], entries[1])
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(q.shape)
