"""What the projections read and give on data, summed up: where an activation basis comes from."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from medcare_jax.data.packing import Batch
from medcare_jax.models.decoder import Decoder
from medcare_jax.orthogonality import Side, accumulate_covariance
from medcare_jax.params import Tree, flatten, merge, unflatten
from medcare_jax.sharding import tree_shardings

_SOURCES = {"lora_a": "inputs", "lora_b": "outputs"}
_LEAVES: dict[str, tuple[str, ...]] = {
    "input": ("lora_a",),
    "output": ("lora_b",),
    "both": ("lora_a", "lora_b"),
}


def activation_covariance(
    decoder: Decoder,
    trees: Mapping[str, Tree],
    batches: Iterable[Batch],
    like: Tree,
    mesh: Mesh,
    *,
    side: Side = "input",
) -> Tree:
    """The uncentred covariance of what projections read (input) or give (output) on batches.

    Streamed: at most one batch's activations exist at once, cut along the batch. Padding counts
    nothing. The same batches give the same bits on the same devices.

    Args:
      decoder: The model whose activations count.
      trees: Its base and adapters, placed.
      batches: On the mesh.
      like: The LoRA tree that will be constrained, or its shapes: which projections count.
      mesh: Where the sums go, cut by the rules of their leaves.
      side: Whose paths the sums get: `lora_a` (input), `lora_b` (output), or both.

    Returns:
      Float32 [l, d, d] at each such path; for `covariance_basis`.
    """
    shapes = {
        path: jax.ShapeDtypeStruct((*leaf.shape[:-2], *_width(path, leaf)), jnp.float32)
        for path, leaf in flatten(like).items()
        if path.rpartition("/")[2] in _LEAVES[side]
    }
    places = tree_shardings(mesh, unflatten(shapes))
    zeros = unflatten({path: jnp.zeros(each.shape, each.dtype) for path, each in shapes.items()})
    total: Tree = jax.device_put(zeros, places)
    params = merge(trees)
    for batch in batches:
        total = jax.device_put(_add(decoder, params, total, batch), places)
    return total


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _add(decoder: Decoder, params: Tree, total: Tree, batch: Batch) -> Tree:
    """The sums with those of one batch added."""
    _, sown = decoder.apply(
        {"params": params}, batch.tokens, batch.positions, batch.segments, mutable=["activations"]
    )
    seen: dict[str, Any] = flatten(sown["activations"])
    is_token = jnp.asarray(batch.segments > 0)[None, :, :, None]

    def of_tokens(path: str) -> Array:
        owner, _, name = path.rpartition("/")
        found = seen[f"{owner}/{_SOURCES[name]}"][0]
        return jnp.where(is_token, found, jnp.zeros((), found.dtype))

    return dict(
        accumulate_covariance(total, unflatten({path: of_tokens(path) for path in flatten(total)}))
    )


def _width(path: str, leaf: Array) -> tuple[int, int]:
    """The constrained axis of a leaf, twice."""
    size = leaf.shape[-1] if path.endswith("lora_b") else leaf.shape[-2]
    return size, size
