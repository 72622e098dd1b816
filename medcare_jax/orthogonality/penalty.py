"""The soft constraint: a loss on the overlap of two LoRA trees."""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from medcare_jax.orthogonality.leaves import (
    Side,
    coordinates,
    leaf_name,
    leaves_by_path,
    matched_bases,
    oriented,
    protected_names,
)

Norm = Literal["l1", "frobenius", "cosine"]

_HIGHEST = jax.lax.Precision.HIGHEST


def overlap_penalty(
    knowledge: PyTree[Array],
    alignment: PyTree[Array],
    *,
    norm: Norm = "l1",
    side: Side = "input",
) -> Float[Array, ""]:
    r"""Overlap of two LoRA trees, summed over the projections that both adapt.

    With :math:`G = A_K^\top A_O` (input side) or :math:`G = B_K B_O^\top` (output side):
    ``"l1"`` is :math:`\sum |G|`, the penalty of MedCare and O-LoRA, and ``"frobenius"`` is
    :math:`\sum G^2`, smooth at zero. Both are sums, over stacked layers too, as in the paper.
    ``"cosine"`` is the *mean* of the squared cosines between columns, in [0, 1]: shrinking the
    adapters does not lower it. Differentiable in both arguments; ``jax.lax.stop_gradient`` on
    ``knowledge`` keeps that frozen.

    Args:
      knowledge: a LoRA tree, any float dtype; ranks may differ from those of ``alignment``.
      alignment: another; projections that only one of the two has are left out.
      norm: see above.
      side: ``"input"`` compares ``lora_a``, ``"output"`` ``lora_b``, ``"both"`` adds the two.

    Returns:
      float32 scalar, not yet multiplied by the penalty's weight.

    Raises:
      ValueError: the trees share no projection, shapes do not fit, or an unknown name.

    Examples:
      >>> import jax.numpy as jnp
      >>> knowledge = {"lora_a": jnp.array([[1.0], [0.0]])}
      >>> alignment = {"lora_a": jnp.array([[-3.0], [4.0]])}
      >>> float(overlap_penalty(knowledge, alignment))
      3.0
      >>> print(f"{overlap_penalty(knowledge, alignment, norm='cosine'):.2f}")
      0.36

    References:
      Liao et al., `MedCare <https://arxiv.org/abs/2406.17484>`_, 2024

      Wang et al., `Orthogonal Subspace Learning for Language Model Continual Learning
      <https://arxiv.org/abs/2310.14152>`_, 2023
    """
    _check_norm(norm)
    grams = [
        _gram(path, first, second, norm)
        for path, first, second in _pairs(knowledge, alignment, side)
    ]
    return _sum(grams, norm, entries=sum(gram.size for gram in grams))


def subspace_penalty(
    tree: PyTree[Array], basis: PyTree[Array], *, norm: Norm = "l1"
) -> Float[Array, ""]:
    r"""What of a tree lies inside a subspace, as a loss: `project_tree`, made soft.

    `overlap_penalty` with :math:`Q` in place of :math:`A_K`: it takes a basis of any source, and
    every direction of it counts alike, however long the knowledge's columns are.

    Args:
      tree: constrained parameters.
      basis: see `project_tree`; its side is the side of the penalty.
      norm: as for `overlap_penalty`.

    Returns:
      float32 scalar, 0 if nothing is constrained.

    Examples:
      >>> import jax.numpy as jnp
      >>> basis = {"lora_a": jnp.array([[1.0], [0.0]])}
      >>> float(subspace_penalty({"lora_a": jnp.array([[-3.0], [4.0]])}, basis))
      3.0
    """
    _check_norm(norm)
    grams: list[Array] = []
    entries: int | Array = 0
    bases = matched_bases(tree, basis)
    for path, c, columns in coordinates(tree, basis):
        grams.append(c if norm != "cosine" else _cosines(c, columns))
        # A direction of zeros only makes the layers of a stack equally wide.
        entries += jnp.any(bases[path] != 0.0, axis=-2).sum() * c.shape[-1]
    return _sum(grams, norm, entries=entries)


def _cosines(c: Float[Array, "... q r"], columns: Float[Array, "... d r"]) -> Array:
    """Coordinates of columns made unit; zero ones stay zero, and so does their gradient."""
    squares = jnp.square(columns).sum(-2, keepdims=True)
    return c * jax.lax.rsqrt(jnp.where(squares == 0.0, 1.0, squares))


def _check_norm(norm: str) -> None:
    if norm not in _MEASURES:
        raise ValueError(f"expected norm to be one of {sorted(_MEASURES)}, got {norm!r}")


def _sum(grams: list[Array], norm: Norm, *, entries: int | Array) -> Float[Array, ""]:
    """The norm over all Gram matrices; for the cosine the mean over their entries."""
    total = sum((_MEASURES[norm](gram) for gram in grams), start=jnp.zeros([], jnp.float32))
    return (
        total / jnp.maximum(jnp.asarray(entries, jnp.float32), 1.0) if norm == "cosine" else total
    )


_MEASURES: Mapping[str, Callable[[Array], Array]] = {
    "l1": lambda gram: jnp.abs(gram).sum(),
    "frobenius": lambda gram: jnp.square(gram).sum(),
    "cosine": lambda gram: jnp.square(gram).sum(),
}


def _pairs(
    knowledge: PyTree[Array], alignment: PyTree[Array], side: Side
) -> list[tuple[str, Array, Array]]:
    """The protected leaves that both trees have, in order of path."""
    ours, theirs = leaves_by_path(knowledge), leaves_by_path(alignment)
    names = protected_names(side)
    paths = sorted(p for p in ours.keys() & theirs.keys() if leaf_name(p) in names)
    if not paths:
        raise ValueError(
            f"expected projections with {list(names)} in both trees, found none among "
            f"{len(ours)} and {len(theirs)} leaves; compare their paths"
        )
    return [(path, ours[path], theirs[path]) for path in paths]


def _gram(path: str, first: Array, second: Array, norm: Norm) -> Float[Array, "... r s"]:
    """Inner products of the columns of both, of unit columns for the cosine."""
    a = oriented(path, first).astype(jnp.float32)
    b = oriented(path, second).astype(jnp.float32)
    if a.shape[:-1] != b.shape[:-1]:
        raise ValueError(
            f"{path}: expected leaves that differ in rank only, got {first.shape} and "
            f"{second.shape}"
        )
    if norm == "cosine":
        a, b = _unit_columns(a), _unit_columns(b)
    return jnp.einsum("...dr,...ds->...rs", a, b, precision=_HIGHEST)


def _unit_columns(matrix: Float[Array, "... d r"]) -> Float[Array, "... d r"]:
    """The columns at length 1; zero ones stay zero, and so does their gradient."""
    squares = jnp.square(matrix).sum(-2, keepdims=True)
    return matrix * jax.lax.rsqrt(jnp.where(squares == 0.0, 1.0, squares))
