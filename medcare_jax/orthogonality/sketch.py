r"""Leading directions of a covariance that is too large to hold, streamed.

An FFN of a 7B model reads 11,008 dimensions, so 32 layers of ``[d, d]`` sums are 15 GB, and each
of them would have to be decomposed. What the covariance :math:`C` makes of a few random probes
:math:`\Omega` is enough to find its leading eigenvectors (the Nyström approximation
:math:`C \approx C\Omega\,(\Omega^\top C\Omega)^{+}\,\Omega^\top C`): all that is ever made is
``[d, k]``, and what is decomposed is ``[k, k]`` and ``[d, k]``.

Activations have flat spectra, of which random probes miss a good part. A second pass, with the
probes that `refine_sketch` makes of the first, finds almost what the best ``k`` directions hold.

Sources: Tropp et al., Fixed-Rank Approximation of a Positive-Semidefinite Matrix from Streaming
Data, arXiv:1706.05736; Halko et al., Finding Structure with Randomness, arXiv:0909.4061.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from medcare_jax.orthogonality import decompositions
from medcare_jax.orthogonality.leaves import leaves_by_path, map_with_path
from medcare_jax.orthogonality.selection import (
    check_energy,
    checked,
    counts,
    is_traced,
    keep,
    reaches,
)

_HIGHEST = jax.lax.Precision.HIGHEST
_SLACK = 1e-4  # of float32 sums, where an energy share is compared


class Sketch(NamedTuple):
    """What is kept of the covariance ``[..., d, d]`` at each path; float32.

    Attributes:
      probes: ``[d, k]``, or ``[..., d, k]`` once refined; the identity ``[d, d]`` where nothing
        has to be left out.
      products: the covariance times the probes, ``[..., d, k]``.
      traces: of the covariance, ``[...]``.
    """

    probes: PyTree[Array]
    products: PyTree[Array]
    traces: PyTree[Array]


def make_sketch(
    shapes: PyTree[jax.ShapeDtypeStruct], key: Array, *, width: int, whole: int = 0
) -> Sketch:
    """The sketch of no activations yet.

    Args:
      shapes: at each path ``[*stack, d]``: what will be accumulated, without its tokens.
      key: of the random probes.
      width: most directions that can be found at a path.
      whole: up to this ``d`` all directions can be, and the sketch is the covariance itself.

    Examples:
      >>> import jax
      >>> shapes = {"lora_a": jax.ShapeDtypeStruct((3, 8), "float32")}
      >>> make_sketch(shapes, jax.random.key(0), width=4).products["lora_a"].shape
      (3, 8, 4)
    """
    place = {path: i for i, path in enumerate(sorted(leaves_by_path(shapes)))}

    def probes(path: str, shape: Array) -> Array:
        d = shape.shape[-1]
        if d <= max(width, whole):
            return jnp.eye(d)
        return jax.random.normal(jax.random.fold_in(key, place[path]), (d, width))

    drawn = map_with_path(probes, shapes)
    zeros = lambda shape, probes: jnp.zeros((*shape.shape, probes.shape[-1]))
    return Sketch(
        drawn,
        jax.tree.map(zeros, shapes, drawn),
        jax.tree.map(lambda shape: jnp.zeros(shape.shape[:-1]), shapes),
    )


def accumulate_sketch(sketch: Sketch, activations: PyTree[Array]) -> Sketch:
    """The sketch with more activations added: a pure, streaming sum like `accumulate_covariance`.

    Args:
      sketch: from `make_sketch`.
      activations: same paths, ``[*stack, *tokens, d]``, any float dtype; padding must be zero.
    """

    def rows(x: Array, product: Array) -> Array:
        stack, d = product.shape[:-2], product.shape[-2]
        if x.shape[: len(stack)] != stack or x.shape[-1] != d:
            raise ValueError(
                f"expected activations [*{stack}, *tokens, {d}] for a sketch {product.shape}, got "
                f"{x.shape}"
            )
        return x.reshape(*stack, -1, d)

    flat = jax.tree.map(rows, activations, sketch.products)
    by_path = (leaves_by_path(part) for part in (sketch.products, sketch.probes, flat))
    products = _add_rows(*by_path)
    return Sketch(
        sketch.probes,
        map_with_path(lambda path, _: products[path], sketch.products),
        jax.tree.map(lambda total, x: total + _energy(x), sketch.traces, flat),
    )


_ByPath = dict[str, Array]


def _add_rows(products: _ByPath, probes: _ByPath, rows: _ByPath) -> _ByPath:
    """The products with C's part of rows ``[..., t, d]``; of one layer at a time in float32.

    One loop for all paths: the messages of several that ran side by side could cross.
    """
    added = {
        path: _add_matrix(products[path], probes[path], rows[path])
        for path in products
        if products[path].ndim == 2
    }
    for size in sorted({leaf.shape[0] for path, leaf in products.items() if path not in added}):
        paths = [p for p, leaf in products.items() if p not in added and leaf.shape[0] == size]
        own = [path for path in paths if probes[path].ndim == products[path].ndim]
        stacked = tuple(
            {path: part[path] for path in of}
            for part, of in ((products, paths), (probes, own), (rows, paths))
        )

        def add(each: tuple[_ByPath, _ByPath, _ByPath]) -> _ByPath:
            return _add_rows(each[0], {**probes, **each[1]}, each[2])

        added |= jax.lax.map(add, stacked)
    return added


def _add_matrix(product: Array, probes: Array, rows: Array) -> Array:
    """The product ``[d, k]`` with the part of rows ``[t, d]``."""
    wide = rows.astype(jnp.float32)
    seen = jnp.matmul(wide, probes, precision=_HIGHEST)
    return product + jnp.matmul(wide.T, seen, precision=_HIGHEST)


def _energy(x: Array) -> Array:
    """The sum of squares of rows ``[..., t, d]``, float32."""
    return jnp.einsum(
        "...td,...td->...", x, x, precision=_HIGHEST, preferred_element_type=jnp.float32
    )


def is_whole(sketch: Sketch) -> bool:
    """Whether nothing is left out anywhere, so that a second pass would find the same."""
    return all(_is_identity(probes) for probes in jax.tree.leaves(sketch.probes))


def refine_sketch(sketch: Sketch) -> Sketch:
    """The sketch of no activations yet, whose probes are what another sketch has found.

    Accumulated over the same activations it holds almost the energy that the best directions of
    its width hold.

    Examples:
      >>> import jax
      >>> shapes = {"lora_a": jax.ShapeDtypeStruct((3, 8), "float32")}
      >>> first = make_sketch(shapes, jax.random.key(0), width=4)
      >>> first = accumulate_sketch(first, {"lora_a": jax.numpy.ones((3, 5, 8))})
      >>> refine_sketch(first).probes["lora_a"].shape
      (3, 8, 4)
    """

    def found(probes: Array, products: Array) -> Array:
        # A copy: who accumulates may give its sketch away, and the first stays whole.
        return jnp.copy(probes) if _is_identity(probes) else decompositions.qr(products)[0]

    return Sketch(
        jax.tree.map(found, sketch.probes, sketch.products),
        jax.tree.map(jnp.zeros_like, sketch.products),
        jax.tree.map(jnp.zeros_like, sketch.traces),
    )


def sketch_basis(sketch: Sketch, *, energy: float, tolerance: float = 1e-6) -> PyTree[Array]:
    """Basis of the leading eigenvectors of a sketched covariance.

    Equal to `covariance_basis` where the probes are the identity. Elsewhere eigenvalues
    come out too small rather than too large, so that at least the energy asked for is protected.

    Args:
      sketch: after `accumulate_sketch`.
      energy: share of the trace to keep, in (0, 1].
      tolerance: smallest eigenvalue that counts, relative to the largest.

    Returns:
      A basis tree, ``[..., d, q]`` at each path.

    Raises:
      ValueError: ``energy`` out of range or beyond what the width can hold; a value not finite.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> shapes = {"lora_a": jax.ShapeDtypeStruct((3,), "float32")}
      >>> sketch = make_sketch(shapes, jax.random.key(0), width=8)
      >>> x = jnp.array([[1.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
      >>> sketch_basis(accumulate_sketch(sketch, {"lora_a": x}), energy=0.9)["lora_a"].shape
      (3, 1)
    """
    check_energy(energy)
    probes, traces = leaves_by_path(sketch.probes), leaves_by_path(sketch.traces)

    def leading(path: str, products: Array) -> Array:
        products, trace = checked(path, products), traces[path][..., None]
        vectors, values = _eigenvectors(probes[path], products, tolerance)
        found = values.sum(-1, keepdims=True)
        if not is_traced(found) and not _is_identity(probes[path]):
            _check_found(path, values.shape[-1], found, trace, energy)
        is_needed = reaches(values, energy, unseen=jnp.maximum(trace - found, 0.0))
        return keep(vectors, counts(values, tolerance) & is_needed)

    return map_with_path(leading, sketch.products)


def _is_identity(probes: Array) -> bool:
    """Whether the probes leave nothing out."""
    return probes.shape[-2] == probes.shape[-1]


def _eigenvectors(probes: Array, products: Array, tolerance: float) -> tuple[Array, Array]:
    """Of the Nyström approximation: vectors ``[..., d, k]`` and values, descending."""
    inner = jnp.matmul(jnp.swapaxes(probes, -1, -2), products, precision=_HIGHEST)
    values, vectors = decompositions.eigh((inner + jnp.swapaxes(inner, -1, -2)) / 2.0)
    if _is_identity(probes):  # `inner` is the covariance itself
        return jnp.flip(vectors, -1), jnp.flip(jnp.maximum(values, 0.0), -1)
    is_known = values > tolerance * values[..., -1:]
    scales = jnp.where(is_known, jax.lax.rsqrt(jnp.where(is_known, values, 1.0)), 0.0)
    factor = jnp.matmul(products, vectors * scales[..., None, :], precision=_HIGHEST)
    u, roots = decompositions.svd(factor)
    return u, roots**2


def _check_found(path: str, width: int, found: Array, trace: Array, energy: float) -> None:
    """Raises if in some layer all directions of a narrow sketch do not hold the energy."""
    held = float(jnp.where(trace > 0.0, found / jnp.where(trace > 0.0, trace, 1.0), 1.0).min())
    if held < energy - _SLACK:
        raise ValueError(
            f"{path}: {width} directions hold {held:.1%} of the energy of the activations, "
            f"expected {energy:.1%}; ask for less energy or a wider sketch"
        )
