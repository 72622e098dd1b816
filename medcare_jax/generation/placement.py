"""Batches on a mesh: sizes that divide evenly, and results that every process can read."""

import math

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from medcare_jax.models.attention import KVCache
from medcare_jax.sharding import BATCH_AXES


def even_batch(batch: int) -> int:
    """The batch rounded up to a multiple of the devices that it is cut over.

    Args:
      batch: rows asked for.

    Returns:
      Rows to compute; the same as asked for where no mesh is set.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return -(-batch // shards) * shards


def replicate(x: Array) -> Array:
    """Keeps an array whole on every device if a mesh is set, so that any process can read it."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P())


def shard_cache(cache: KVCache) -> KVCache:
    """Keeps a cache cut as what it is made of: rows like the batch, heads like the projections."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return cache
    heads = "tensor" if cache.keys.shape[2] % mesh.shape["tensor"] == 0 else None
    places = P(None, BATCH_AXES, heads)
    return KVCache(
        jax.lax.with_sharding_constraint(cache.keys, places),
        jax.lax.with_sharding_constraint(cache.values, places),
        jax.lax.with_sharding_constraint(cache.segments, P(BATCH_AXES)),
    )
