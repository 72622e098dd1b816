"""Causal attention of packed rows in blocks, where no accelerator's kernel does it.

A block of queries meets only those blocks of keys that it can see something of: none above the
diagonal, none before the first dialogue that any of a device's rows has there. So packed rows cost
little more than their dialogues, and nothing of size [t, s] ever exists, in either direction.

Source: FlashAttention, Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from medcare_jax.shapes import Keys, Queries, Segments
from medcare_jax.sharding import BATCH_AXES

BLOCK = 64
"""Tokens of a block."""

_Heads = Float[Array, "blocks b k rows h"]  # rows: of queries all that share a key head, g · BLOCK
_Stats = Float[Array, "b k rows"]
_UNSEEN = float(jnp.finfo(jnp.float32).min)


class Blocks(NamedTuple):
    """Which tokens see which, in blocks; the same for all layers.

    Attributes:
      segments: Of each block's tokens, padded with 0.
      first: The first block of keys that a row's block of queries sees something of. Padding does
        not count: it sees some padding, itself at least, and nobody reads what comes of it.
    """

    segments: Int[Array, "b blocks block"]
    first: Int[Array, "b blocks"]


def visible_blocks(segments: Segments) -> Blocks:
    """The blocks of packed rows; a token sees earlier ones of its segment and itself.

    >>> blocks = visible_blocks(jnp.repeat(jnp.array([[1, 2]]), 2 * BLOCK, axis=1))
    >>> blocks.first.tolist()
    [[0, 0, 2, 2]]
    """
    cut = _cut(segments)
    length = len(cut) * BLOCK
    whole = cut.swapaxes(0, 1).reshape(-1, 1, length)

    def start(tokens: Int[Array, "b block"]) -> Int[Array, " b"]:
        sees = (tokens[:, :, None] == whole) & (tokens[:, :, None] > 0)
        return jnp.min(jnp.where(sees, jnp.arange(length)[None, None], length), axis=(1, 2))

    # Block by block: for all at once XLA would write [b, t, s].
    starts = jax.lax.map(start, cut)
    first = jnp.minimum(starts // BLOCK, jnp.arange(len(cut))[:, None])
    return Blocks(cut.swapaxes(0, 1), first.swapaxes(0, 1))


def attend_blocks(q: Queries, k: Keys, v: Keys, seen: Blocks, *, residual_name: str) -> Queries:
    """Softmax attention of packed rows; [b, t, n, h] like q, in its dtype.

    On a mesh each device attends to its own rows and heads, as far as these rows need.

    Args:
      q: Queries.
      k: Keys; their heads divide those of q.
      v: Values.
      seen: Made by `visible_blocks` for these rows.
      residual_name: What remat policies call the output and its log-sum-exp.
    """
    attend = functools.partial(_attend_local, residual_name=residual_name)
    if not jax.sharding.get_abstract_mesh().empty:
        heads, rows = P(BATCH_AXES, None, "tensor"), P(BATCH_AXES)
        attend = jax.shard_map(
            attend,
            in_specs=(heads, heads, heads, Blocks(rows, rows)),
            out_specs=heads,
            check_vma=False,  # loops of their own length on each device
        )
    return attend(q, k, v, seen)


def _attend_local(q: Queries, k: Keys, v: Keys, seen: Blocks, *, residual_name: str) -> Queries:
    """The rows and heads of one device."""
    (b, t, n, h), heads = q.shape, k.shape[2]
    # [blocks, b, block, k, g, h]: all queries of a key head stand together.
    queries = _cut(q.reshape(b, t, heads, n // heads, h)).transpose(0, 1, 3, 4, 2, 5)
    queries = queries.reshape(-1, b, heads, n // heads * BLOCK, h)
    keys, values = (_cut(each).swapaxes(2, 3) for each in (k, v))
    out = _attend(queries, keys, values, seen, residual_name)
    out = out.reshape(-1, b, heads, n // heads, BLOCK, h).transpose(1, 0, 4, 2, 3, 5)
    return out.reshape(b, -1, n, h)[:, :t]


def _cut(x: Array) -> Array:
    """[b, t, ...] as [blocks, b, block, ...], padded with zeros."""
    rest = -x.shape[1] % BLOCK
    x = jnp.pad(x, [(0, rest if axis == 1 else 0) for axis in range(x.ndim)])
    return x.reshape(x.shape[0], -1, BLOCK, *x.shape[2:]).swapaxes(0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: _Heads, k: _Heads, v: _Heads, seen: Blocks, residual_name: str) -> _Heads:
    """Attention of blocks."""
    return _forward(q, k, v, seen)[0]


def _forward(q: _Heads, k: _Heads, v: _Heads, seen: Blocks) -> tuple[_Heads, Array]:
    """The output in q's dtype, and the log-sum-exp of each query's scores."""

    def of_queries(_: None, x: tuple[Array, ...]) -> tuple[None, tuple[Array, Array]]:
        i, first, queries = x

        def meet(j: Array, state: tuple[_Stats, _Stats, Array]) -> tuple[_Stats, _Stats, Array]:
            most, total, out = state
            scores = _scores(queries, k[j], seen.segments, i, j)
            now = jnp.maximum(most, scores.max(axis=-1))
            # A row that has seen nothing yet sums rubbish, which its first real score, of itself
            # at the latest, multiplies by 0.
            weights, old = jnp.exp(scores - now[..., None]), jnp.exp(most - now)
            total = total * old + weights.sum(axis=-1)
            return now, total, out * old[..., None] + _product(weights.astype(q.dtype), v[j])

        empty = jnp.zeros(queries.shape, jnp.float32)
        start = (jnp.full(queries.shape[:-1], _UNSEEN), empty[..., 0], empty)
        most, total, out = jax.lax.fori_loop(first, i + 1, meet, start)
        return None, ((out / total[..., None]).astype(q.dtype), most + jnp.log(total))

    return jax.lax.scan(of_queries, None, (jnp.arange(len(q)), seen.first.min(axis=0), q))[1]


def _keep(
    q: _Heads, k: _Heads, v: _Heads, seen: Blocks, residual_name: str
) -> tuple[_Heads, tuple[Array | Blocks, ...]]:
    """The output, and what the backward pass needs."""
    out, sums = (checkpoint_name(each, residual_name) for each in _forward(q, k, v, seen))
    return out, (q, k, v, seen, out, sums)


def _backward(
    residual_name: str, kept: tuple[Array, Array, Array, Blocks, Array, Array], dout: _Heads
) -> tuple[_Heads, _Heads, _Heads, None]:
    """Gradients of queries, keys and values, summed in float32."""
    q, k, v, seen, out, sums = kept
    along = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=-1)

    def of_queries(state: tuple[Array, Array], x: tuple[Array, ...]) -> tuple:
        i, first, queries, down, total, inner = x

        def meet(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq, dk, dv = state
            scores = _scores(queries, k[j], seen.segments, i, j)
            weights = jnp.exp(scores - total[..., None])
            slope = weights * (_product(down, v[j].swapaxes(2, 3)) - inner[..., None])
            slope = slope * q.shape[-1] ** -0.5
            weights, slope = weights.astype(q.dtype), slope.astype(q.dtype)
            dv = dv.at[j].add(_product(weights.swapaxes(2, 3), down))
            dk = dk.at[j].add(_product(slope.swapaxes(2, 3), queries))
            return dq + _product(slope, k[j]), dk, dv

        dq = jnp.zeros(queries.shape, jnp.float32)
        dq, *state = jax.lax.fori_loop(first, i + 1, meet, (dq, *state))
        return tuple(state), dq.astype(q.dtype)

    empty = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    blocks = (jnp.arange(len(q)), seen.first.min(axis=0), q, dout, sums, along)
    (dk, dv), dq = jax.lax.scan(of_queries, empty, blocks)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_keep, _backward)


def _scores(
    queries: Float[Array, "b k rows h"],
    keys: Float[Array, "b k s h"],
    segments: Int[Array, "b blocks block"],
    i: Array,
    j: Array,
) -> Float[Array, "b k rows s"]:
    """Scores of the queries of block i and the keys of block j; the least float if unseen."""
    scores = _product(queries, keys.swapaxes(2, 3)) * queries.shape[-1] ** -0.5
    place = jnp.arange(BLOCK)
    causal = (i * BLOCK + place)[:, None] >= (j * BLOCK + place)[None]
    seen = causal[None] & (segments[:, i, :, None] == segments[:, j, None, :])
    of_heads = scores.reshape(*scores.shape[:2], -1, BLOCK, BLOCK)
    return jnp.where(seen[:, None, None], of_heads, _UNSEEN).reshape(scores.shape)


def _product(x: Float[Array, "b k r s"], y: Float[Array, "b k s h"]) -> Float[Array, "b k r h"]:
    """Their product in float32."""
    return jnp.einsum("bkrs,bksh->bkrh", x, y, preferred_element_type=jnp.float32)
