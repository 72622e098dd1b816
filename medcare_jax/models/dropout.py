"""Dropout at a quarter of the usual arithmetic: one hash draws four entries of the mask.

JAX's own masks spend a Threefry hash, some 150 operations, on each entry, and XLA computes that
anew inside every matmul that reads the masked input (docs/performance.md).
"""

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Bool, Float, Key

_LEVELS = 1 << 16  # a rate is rounded to a multiple of 1 / _LEVELS


def dropout(x: Float[Array, "b t d"], rate: float, key: Key[Array, ""]) -> Float[Array, "b t d"]:
    """The input with entries left out at random and the others scaled up, so that the mean stays.

    The mask depends on the key and on an entry's place alone, however the array is sharded.

    Args:
      x: Any float dtype, which the result has too.
      rate: Share of the entries that become 0, in [0, 1); rounded to a multiple of 1/65536.
      key: Of any of JAX's generators.

    Examples:
      >>> kept = dropout(jnp.ones((2, 5, 3)), 0.5, jax.random.key(0))
      >>> sorted(set(kept.ravel().tolist()))
      [0.0, 2.0]
    """
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    if not dropped:
        return x
    # Behind a barrier, or each matmul that reads the result would draw the mask for itself.
    keep = jax.lax.optimization_barrier(_keep_mask(key, x.shape, dropped))
    # In float32: in bfloat16 a factor of 1.0526 is 1.0547, and the mean would not stay.
    scaled = (x.astype(jnp.float32) * (_LEVELS / (_LEVELS - dropped))).astype(x.dtype)
    return jnp.where(keep, scaled, jnp.zeros((), x.dtype))


def _keep_mask(
    key: Key[Array, ""], shape: tuple[int, int, int], dropped: int
) -> Bool[Array, "b t d"]:
    """Which entries stay: those whose 16 random bits are no smaller than `dropped`."""
    rows, tokens, width = shape
    quarter = (rows, -(-tokens // 4), width)
    row, token, column = (jax.lax.broadcasted_iota(jnp.uint32, quarter, axis) for axis in range(3))
    # Drawn by the key's own generator: keys of `rbg`, common on TPUs, are wider than Threefry's.
    halves = (jnp.broadcast_to(half, quarter) for half in jax.random.bits(key, (2,), jnp.uint32))
    words = threefry2x32_p.bind(*halves, row, token * jnp.uint32(width) + column)
    bits = [part for word in words for part in (word >> 16, word & jnp.uint32(_LEVELS - 1))]
    return jnp.concatenate([part >= dropped for part in bits], axis=1)[:, :tokens]
