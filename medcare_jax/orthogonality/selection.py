"""Which directions count, and how many are kept: shared by all that makes a basis."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def is_traced(x: Array) -> bool:
    """Whether values are unknown, inside ``jit``, ``vmap`` or ``eval_shape``."""
    return isinstance(x, jax.core.Tracer)


def checked(path: str, leaf: Array) -> Array:
    """The leaf in float32; raises if a value is not finite, where values are known."""
    leaf = leaf.astype(jnp.float32)
    if not is_traced(leaf) and not bool(jnp.isfinite(leaf).all()):
        raise ValueError(f"{path}: expected finite values, found NaN or infinity; no subspace")
    return leaf


def check_energy(energy: float) -> None:
    """Raises unless it is a share that can be reached."""
    if not 0.0 < energy <= 1.0:
        raise ValueError(f"expected an energy share in (0, 1], got {energy}")


def counts(values: Float[Array, "... n"], tolerance: float) -> Bool[Array, "... n"]:
    """Which of the descending values count; NaN does, so that it spoils the basis visibly."""
    return ~(values <= tolerance * values[..., :1])


def reaches(
    energies: Float[Array, "... n"], energy: float, *, unseen: Array | float = 0.0
) -> Bool[Array, "... n"]:
    """Which of the descending energies are needed to hold the share ``energy`` of the whole.

    The whole is their sum and ``unseen``, ``[..., 1]``: the energy of directions not among them.
    """
    # Summed from the small end: the tail keeps its digits when the share is close to 1.
    tail = jnp.flip(jnp.cumsum(jnp.flip(energies, -1), axis=-1), -1) + unseen
    return ~(tail <= (1.0 - energy) * tail[..., :1])


def keep(vectors: Float[Array, "... d n"], is_kept: Bool[Array, "... n"]) -> Array:
    """The kept columns, zero where not kept, cut to the largest count where values are known."""
    kept = jnp.where(is_kept[..., None, :], vectors, 0.0)
    if is_traced(kept):
        return kept
    return kept[..., : int(is_kept.sum(-1).max())]
