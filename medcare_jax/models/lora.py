"""Low-rank deltas: the factors of every adapter of a projection, applied as one pair of matmuls."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from medcare_jax.sharding import gather

Initializer = Callable[..., Array]

RANKS = "ranks"
"""What remat policies call the rank-space activations."""


class Factors(NamedTuple):
    """One adapter of one projection.

    Attributes:
      lora_a: Reads the input, [d, r].
      lora_b: Writes the output, [r, f].
      gates: What each rank-space column is multiplied by, [b, t, r]; None is 1.
    """

    lora_a: Float[Array, "d r"]
    lora_b: Float[Array, "r f"]
    gates: Float[Array, "b t r"] | None = None


def uniform_fan_in(width: int) -> Initializer:
    """An initializer uniform in ±1/sqrt(width), the reference's for A and router."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        limit = width**-0.5
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class LoRA(nn.Module):
    """The float32 factors of one low-rank adapter; B starts at zero, so its delta does too."""

    rank: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], features: int) -> Factors:
        """The factors for inputs of x's width and outputs of `features`."""
        width = x.shape[-1]
        return Factors(
            self.param("lora_a", uniform_fan_in(width), (width, self.rank)),
            self.param("lora_b", nn.initializers.zeros, (self.rank, features)),
        )


def low_rank_delta(
    x: Float[Array, "b t d"], adapters: Sequence[Factors], *, scale: float
) -> Float[Array, "b t f"]:
    r"""The summed output of adapters: scale · Σ (gates ∘ (x A)) B, computed in x's dtype.

    The factors are joined along the rank, so all adapters of a projection, experts included,
    cost two dense matmuls and no tensor of [tokens, experts, features] ever exists.

    >>> one = jnp.ones((1, 1, 3))
    >>> low_rank_delta(one, [Factors(jnp.ones((3, 2)), jnp.ones((2, 1)))], scale=0.5).item()
    3.0
    """
    lora_a = jnp.concatenate([each.lora_a.astype(x.dtype) for each in adapters], axis=-1)
    lora_b = jnp.concatenate([each.lora_b.astype(x.dtype) for each in adapters], axis=0)
    # They are whole already. Said again here, so that the gradients of a layer are summed whole and
    # in one message: cut, the compiler would ring their slices through each matmul.
    lora_a, lora_b = gather((lora_a, lora_b))
    # Tokens as one axis: with two, XLA on CPU computes B's gradient by way of a transposed copy
    # that it fuses with all that came before, at a third of the whole step's time.
    tokens = x.shape[:-1]
    ranks = (x.reshape(-1, x.shape[-1]) @ lora_a).reshape(*tokens, -1)
    ranks = checkpoint_name(ranks, RANKS)
    if any(each.gates is not None for each in adapters):
        ranks = ranks * _joined_gates(adapters, ranks)
    # Scaled here and not behind B: a tensor of width r instead of f, in both directions.
    ranks = ranks * jnp.asarray(scale, x.dtype)
    return (ranks.reshape(-1, ranks.shape[-1]) @ lora_b).reshape(*tokens, -1)


def _joined_gates(adapters: Sequence[Factors], ranks: Float[Array, "b t r"]) -> Array:
    """Gates of all adapters side by side, ones where an adapter has none."""
    gates = [
        jnp.ones((*ranks.shape[:-1], each.lora_a.shape[-1]), ranks.dtype)
        if each.gates is None
        else each.gates.astype(ranks.dtype)
        for each in adapters
    ]
    return jnp.concatenate(gates, axis=-1)


def fold_factors(
    kernel: Float[Array, "*l d f"],
    lora_a: Float[Array, "*l d r"],
    lora_b: Float[Array, "*l r f"],
    *,
    scale: float,
) -> Float[Array, "*l d f"]:
    """The kernel with an adapter's delta added: in float32, rounded once to the kernel's dtype.

    A stacked kernel is folded layer by layer, so that float32 copies of one layer exist at once.
    """

    def fold(parts: tuple[Array, Array, Array]) -> Array:
        base, a, b = (part.astype(jnp.float32) for part in parts)
        delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return (base + scale * delta).astype(kernel.dtype)

    parts = (kernel, lora_a, lora_b)
    return fold(parts) if kernel.ndim == 2 else jax.lax.map(fold, parts)
