"""What the projections read and give on data, summed up: where an activation basis comes from."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from medcare_jax.data.packing import Batch
from medcare_jax.models.decoder import Decoder
from medcare_jax.orthogonality import (
    Side,
    Sketch,
    accumulate_covariance,
    accumulate_sketch,
    make_sketch,
    refine_sketch,
    sketch_basis,
)
from medcare_jax.orthogonality.leaves import protected_names
from medcare_jax.params import Tree, flatten, merge, unflatten
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh, tree_shardings
from medcare_jax.training.step import microbatches

_SOURCES = {"lora_a": "inputs", "lora_b": "outputs"}


_Total = TypeVar("_Total")

SKETCH_WIDTH = 1024
"""Most directions of an activation basis where projections read more than WHOLE_UP_TO dimensions.

In SmolLM2-135M half of the energy takes a hundredth of the space on average
(docs/orthogonality.md) and a twentieth where the spectrum is flattest
(tests/training/test_real_activations.py); this is a tenth of what `down_proj` of 7B reads.
"""
WHOLE_UP_TO = 2048


def activation_covariance(
    decoder: Decoder,
    trees: Mapping[str, Tree],
    batches: Iterable[Batch],
    like: Tree,
    mesh: Mesh,
    *,
    side: Side = "input",
    accumulation: int = 1,
) -> Tree:
    """The uncentred covariance of what projections read (input) or give (output) on batches.

    Streamed: at most one microbatch's activations exist at once, cut along the batch. Padding
    counts nothing. The same batches give the same bits on the same devices.

    Args:
      decoder: The model whose activations count.
      trees: Its base and adapters, placed.
      batches: On the mesh.
      like: The LoRA tree that will be constrained, or its shapes: which projections count.
      mesh: Where the sums go, cut by the rules of their leaves.
      side: Whose paths the sums get: `lora_a` (input), `lora_b` (output), or both.
      accumulation: Microbatches of a batch, as in training.

    Returns:
      Float32 [l, d, d] at each such path; for `covariance_basis`.
    """
    shapes = _shapes(like, side)
    zeros = {path: jnp.zeros((*x.shape, x.shape[-1])) for path, x in shapes.items()}
    total = unflatten(zeros)
    places = tree_shardings(mesh, total)
    add = functools.partial(_add, decoder, accumulate_covariance, tuple(shapes), accumulation)
    return _stream(add, trees, batches, total, places)


def empty_sketch(like: Tree, key: Array, *, side: Side = "input") -> Sketch:
    """What `activation_sketch` begins with.

    Of the FFN of 7B 2.5 GB over all devices, 5 GB once it is refined, where covariances are 20 GB.

    Args:
      like: As `activation_covariance`.
      key: Of the random probes.
      side: As `activation_covariance`.
    """
    shapes = unflatten(_shapes(like, side))
    return make_sketch(shapes, key, width=SKETCH_WIDTH, whole=WHOLE_UP_TO)


def activation_sketch(
    decoder: Decoder,
    trees: Mapping[str, Tree],
    batches: Iterable[Batch],
    empty: Sketch,
    mesh: Mesh,
    *,
    accumulation: int = 1,
) -> Sketch:
    """What `sketch_basis` has to know of `activation_covariance`, which is never made.

    Args:
      decoder: As `activation_covariance`.
      trees: Likewise.
      batches: Likewise.
      empty: From `empty_sketch` or `refined_sketch`. It is given away: do not use it again.
      mesh: As `activation_covariance`.
      accumulation: Likewise.
    """
    places = Sketch(
        tree_shardings(mesh, empty.probes),
        tree_shardings(mesh, empty.products),
        jax.tree.map(lambda _: NamedSharding(mesh, P()), empty.traces),
    )
    paths = tuple(flatten(empty.products))
    add = functools.partial(_add, decoder, accumulate_sketch, paths, accumulation)
    return _stream(add, trees, batches, empty, places)


def activation_basis(sketch: Sketch, mesh: Mesh, *, energy: float) -> Tree:
    """`sketch_basis` of a sketch on the mesh, decomposed in the host's memory, leaf by leaf.

    The TPU compiler takes three minutes for the eigenvectors of 512 x 512 and was not done with the
    QR of 11,008 x 1,024 after nine (v5e, libtpu 0.0.42.1, one x86-64 core beside other work,
    2026-11-29); LAPACK has either in seconds.

    Args:
      sketch: From `activation_sketch`.
      mesh: Where it is.
      energy: As `sketch_basis`.

    Returns:
      NumPy arrays, float32, the same in every process.
    """
    bases = {}
    for path in flatten(sketch.products):
        alone = _on_host(Sketch(*({path: flatten(part)[path]} for part in sketch)), mesh)
        with _host():
            bases[path] = jax.device_get(sketch_basis(alone, energy=energy))[path]
    return unflatten(bases)


def widest_basis(like: Tree, *, energy: float, side: Side = "input") -> Tree:
    """Shapes of the largest basis that `activation_basis` may give, for plans.

    The leading k of d directions hold at least k / d of the energy, so no more are needed than
    that share of d, nor can be found than the sketch has probes.

    Args:
      like: As `activation_covariance`.
      energy: As `sketch_basis`.
      side: As `activation_covariance`.

    Examples:
      >>> like = {"lora_a": jax.ShapeDtypeStruct((32, 4096, 32), "float32")}
      >>> widest_basis(like, energy=0.1)["lora_a"].shape
      (32, 4096, 410)
      >>> widest_basis(like, energy=0.9)["lora_a"].shape
      (32, 4096, 1024)
    """

    def widest(products: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        *stack, d, probes = products.shape
        return products.update(shape=(*stack, d, min(math.ceil(energy * d), probes)))

    sketch = jax.eval_shape(lambda: empty_sketch(like, jax.random.key(0), side=side))
    return jax.tree.map(widest, sketch.products)


def refined_sketch(sketch: Sketch, mesh: Mesh) -> Sketch:
    """`refine_sketch` of a sketch on the mesh, in the host's memory for the same reason."""
    on_host = _on_host(sketch, mesh)
    with _host():
        refined: Sketch = jax.device_get(refine_sketch(on_host))
    return refined


def _on_host(sketch: Sketch, mesh: Mesh) -> Sketch:
    """The whole sketch as NumPy arrays; each leaf is gathered by itself."""
    whole = NamedSharding(mesh, P())
    return jax.tree.map(lambda leaf: jax.device_get(jax.device_put(leaf, whole)), sketch)


def _host() -> AbstractContextManager[object]:
    """A context whose computations run on the host's CPU, whatever mesh the run is on."""
    return jax.set_mesh(make_mesh(MeshSettings(1, 1, 1), jax.local_devices(backend="cpu")[:1]))


def _stream(
    add: Callable[[Tree, _Total, Batch], _Total],
    trees: Mapping[str, Tree],
    batches: Iterable[Batch],
    total: _Total,
    places: Any,
) -> _Total:
    """The total with all batches added, leaves in place."""
    params = merge(trees)
    total = jax.device_put(total, places)
    added = jax.jit(add, out_shardings=places, donate_argnums=1)
    for batch in batches:
        total = added(params, total, batch)
    return total


def _add(
    decoder: Decoder,
    accumulate: Callable[[_Total, Tree], _Total],
    paths: tuple[str, ...],
    accumulation: int,
    params: Tree,
    total: _Total,
    batch: Batch,
) -> _Total:
    """The total with what stands at the paths on one batch, a microbatch after the other."""

    def add(total: _Total, part: Batch) -> tuple[_Total, None]:
        return accumulate(total, _seen(decoder, paths, params, part)), None

    return jax.lax.scan(add, total, microbatches(batch, accumulation))[0]


def _seen(decoder: Decoder, paths: tuple[str, ...], params: Tree, batch: Batch) -> Tree:
    """What stands at the paths, [l, b, t, d]; zero at padding."""
    _, sown = decoder.apply(
        {"params": params}, batch.tokens, batch.positions, batch.segments, mutable=["activations"]
    )
    seen: dict[str, Any] = flatten(sown["activations"])
    is_token = jnp.asarray(batch.segments > 0)[None, :, :, None]

    def of_tokens(path: str) -> Array:
        owner, _, name = path.rpartition("/")
        found = seen[f"{owner}/{_SOURCES[name]}"][0]
        return jnp.where(is_token, found, jnp.zeros((), found.dtype))

    return unflatten({path: of_tokens(path) for path in paths})


def _shapes(like: Tree, side: Side) -> dict[str, jax.ShapeDtypeStruct]:
    """[l, d] of what the projections of a LoRA tree read or give, by path."""
    return {
        path: jax.ShapeDtypeStruct((*leaf.shape[:-2], _width(path, leaf)), jnp.float32)
        for path, leaf in flatten(like).items()
        if path.rpartition("/")[2] in protected_names(side)
    }


def _width(path: str, leaf: Array) -> int:
    """The constrained axis of a leaf."""
    return leaf.shape[-1] if path.endswith("lora_b") else leaf.shape[-2]
