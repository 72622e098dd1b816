"""Adapters folded into the weights they sit beside."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from medcare_jax import params as trees
from medcare_jax.models.lora import fold_factors
from medcare_jax.settings import AdapterSettings


class FoldingError(ValueError):
    """Adapters that no weight can stand for."""


def fold(
    params: Mapping[str, Any], adapters: AdapterSettings, *, dtype: DTypeLike | None = None
) -> trees.Tree:
    """The base parameters with knowledge and alignment added: W + scale A B per projection.

    Computed in float32 and rounded once; layer by layer, but whole when `dtype` is another one.

    Args:
      params: A model's parameters with any of the components knowledge and alignment.
      adapters: Where the scale comes from.
      dtype: What folded kernels are rounded to; by default each kernel's own dtype.

    Returns:
      A tree without adapters; leaves that had no adapter are the same arrays.

    Raises:
      FoldingError: The noise aggregator is there (its gates depend on the input, so no weight
        equals it), or an adapter has no kernel beside it.

    >>> kernel = {"kernel": jnp.zeros((1, 2, 2))}
    >>> pair = {"lora_a": jnp.ones((1, 2, 1)), "lora_b": jnp.ones((1, 1, 2))}
    >>> folded = fold({"up": kernel | {"knowledge": pair}}, AdapterSettings(rank=1, alpha=3.0))
    >>> folded["up"]["kernel"].tolist()
    [[[3.0, 3.0], [3.0, 3.0]]]
    """
    parts = trees.split(params)
    if trees.NOISE in parts:
        raise FoldingError(
            "a mixture cannot be folded: the noise aggregator's gates depend on the input. Drop "
            "`noise` first, as the method does before DA, or write adapters in reference format"
        )
    base = trees.flatten(parts.get(trees.BASE, {}))
    factors = joined(*(parts.get(name, {}) for name in (trees.KNOWLEDGE, trees.ALIGNMENT)))
    homeless = sorted(owner for owner in factors if f"{owner}/kernel" not in base)
    if homeless:
        raise FoldingError(f"adapters without a kernel to fold into: {', '.join(homeless)}")
    for owner, (lora_a, lora_b) in factors.items():
        kernel = jnp.asarray(base[f"{owner}/kernel"])
        target = kernel.dtype if dtype is None else jnp.dtype(dtype)
        # To another dtype by way of float32, which holds both: only the last cast rounds.
        wide = kernel if target == kernel.dtype else kernel.astype(jnp.float32)
        folded = _fold(wide, lora_a, lora_b, scale=adapters.scale)
        base[f"{owner}/kernel"] = jax.device_put(folded.astype(target), kernel.sharding)
    return trees.unflatten(base)


def rounded_away(
    params: Mapping[str, Any], folded: Mapping[str, Any], adapters: AdapterSettings
) -> float:
    """What rounding took of the deltas when they were folded, as a share of their norm.

    Sparse bits of bfloat16 weights swallow a delta that is small beside them: one below half a
    unit in the last place of its weight is gone.

    Args:
      params: A model's parameters with knowledge, alignment or both.
      folded: What `fold` made of them, in any dtype.
      adapters: Where the scale comes from.

    Returns:
      |folded - (W + D)| / |D| over all projections with an adapter, D its delta; 0 if none is
      other than zero.

    >>> kernel = {"kernel": jnp.ones((1, 1, 1), jnp.bfloat16)}
    >>> pair = {"lora_a": jnp.ones((1, 1, 1)), "lora_b": jnp.full((1, 1, 1), 1e-3)}
    >>> params, adapters = {"up": kernel | {"knowledge": pair}}, AdapterSettings(rank=1, alpha=1.0)
    >>> rounded_away(params, fold(params, adapters), adapters)
    1.0
    """
    parts = trees.split(params)
    before, after = trees.flatten(parts[trees.BASE]), trees.flatten(folded)
    lost = asked = 0.0
    factors = joined(*(parts.get(name, {}) for name in (trees.KNOWLEDGE, trees.ALIGNMENT)))
    for owner, (lora_a, lora_b) in factors.items():
        kernels = before[f"{owner}/kernel"], after[f"{owner}/kernel"]
        found = _missed(*kernels, lora_a, lora_b, scale=adapters.scale)
        lost, asked = lost + float(found[0]), asked + float(found[1])
    return (lost / asked) ** 0.5 if asked else 0.0


def joined(
    *components: Mapping[str, Any],
) -> dict[str, tuple[Float[Array, "l i r"], Float[Array, "l r o"]]]:
    """Several LoRA trees as one of summed rank, by the path of the projection.

    A's lie side by side and B's below each other, so the product is the sum of the products. A
    projection that only some of the trees have keeps the factors of those.

    >>> one = {"up": {"lora_a": jnp.ones((1, 5, 2)), "lora_b": jnp.ones((1, 2, 3))}}
    >>> [factor.shape for factor in joined(one, one)["up"]]
    [(1, 5, 4), (1, 4, 3)]
    """
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    for leaves in map(trees.flatten, components):
        for path in leaves:
            owner, _, name = path.rpartition("/")
            if name == "lora_a":
                pair = leaves[path], leaves[f"{owner}/lora_b"]
                pairs.setdefault(owner, []).append(pair)
    return {
        owner: (
            jnp.concatenate([lora_a for lora_a, _ in found], axis=-1),
            jnp.concatenate([lora_b for _, lora_b in found], axis=-2),
        )
        for owner, found in pairs.items()
    }


_fold = jax.jit(fold_factors, static_argnames="scale")


@functools.partial(jax.jit, static_argnames="scale")
def _missed(
    before: Array, after: Array, lora_a: Array, lora_b: Array, *, scale: float
) -> tuple[Array, Array]:
    """Squared norms, over all layers, of what folding missed and of the delta."""

    def layer(parts: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        old, new, a, b = (part.astype(jnp.float32) for part in parts)
        delta = scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return jnp.square((new - old) - delta).sum(), jnp.square(delta).sum()

    lost, asked = jax.lax.map(layer, (before, after, lora_a, lora_b))
    return lost.sum(), asked.sum()
