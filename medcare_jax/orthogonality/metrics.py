"""What the constraint does: cheap numbers to log, all jittable.

Per-leaf results are dicts by path, with one value per matrix of a stack; leaves that the basis
leaves unconstrained do not appear. `measure` is all that a training loop logs, at the price of
two thin products per leaf.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from medcare_jax.orthogonality import decompositions
from medcare_jax.orthogonality.leaves import (
    coordinates,
    energy,
    leaf_name,
    leaves_by_path,
    share,
)
from medcare_jax.orthogonality.projection import project_tree

_HIGHEST = jax.lax.Precision.HIGHEST
_ROUNDING = 1e-5  # relative to the Frobenius norm before projecting
_GRAM_ROUNDING = 1e-6  # of eigenvalues of a float32 Gram matrix, relative to the largest


class Measures(NamedTuple):
    """How a tree stands to a subspace, over all constrained matrices; float32 scalars.

    Attributes:
      leak: Largest share of a matrix inside the subspace, see `leak`.
      cosine: Largest cosine of a principal angle between a matrix's span and the subspace.
      overlap: Mean squared cosine of all principal angles, see `overlap_energy`.
      rank: Mean effective rank outside the subspace, see `effective_rank`.
    """

    leak: Float[Array, ""]
    cosine: Float[Array, ""]
    overlap: Float[Array, ""]
    rank: Float[Array, ""]


def measure(tree: PyTree[Array], basis: PyTree[Array]) -> Measures:
    r"""All that is worth logging in every step, from :math:`C = Q^\top A` and :math:`A^\top A`.

    No matrix larger than ``[r, r]`` is decomposed and nothing of length ``d`` is orthonormalised:
    with :math:`A^\top A = V \Lambda V^\top` the principal cosines are the singular values of
    :math:`C V \Lambda^{-1/2}`. Directions of A below 1e-3 of its largest do not count.

    Args:
      tree: constrained parameters.
      basis: see `project_tree`.

    Returns:
      Zeros if nothing is constrained.

    Examples:
      >>> import jax.numpy as jnp
      >>> basis = {"lora_a": jnp.eye(4)[:, :1]}
      >>> found = measure({"lora_a": jnp.eye(4)[:, 1:3]}, basis)
      >>> [round(float(value), 3) for value in found]
      [0.0, 0.0, 0.0, 2.0]
    """
    found = [_measure(c, columns) for _, c, columns in coordinates(tree, basis)]
    if not found:
        return Measures(*(jnp.zeros([], jnp.float32),) * 4)
    leaks, cosines, overlaps, ranks = (
        jnp.concatenate([jnp.ravel(values) for values in each]) for each in zip(*found, strict=True)
    )
    return Measures(leaks.max(), cosines.max(), overlaps.mean(), ranks.mean())


def _measure(
    c: Float[Array, "... q r"], columns: Float[Array, "... d r"]
) -> tuple[Array, Array, Array, Array]:
    """Leak, largest cosine, mean squared cosine and rank left of each matrix of a stack."""
    gram = _gram(columns)
    inside = _gram(c)
    values, vectors = decompositions.eigh(gram)
    is_direction = values > _GRAM_ROUNDING * values[..., -1:]
    scale = jnp.where(is_direction, jax.lax.rsqrt(jnp.where(is_direction, values, 1.0)), 0.0)
    turned = jnp.matmul(c, vectors * scale[..., None, :], precision=_HIGHEST)
    squares = decompositions.eigvalsh(_gram(turned))
    squares = jnp.clip(squares, 0.0, 1.0)
    left = decompositions.eigvalsh(gram - inside)
    left = jnp.where(left > _GRAM_ROUNDING * values[..., -1:], left, 0.0)
    return (
        jnp.sqrt(share(energy(c), energy(columns))),
        jnp.sqrt(squares[..., -1]),
        share(squares.sum(-1), is_direction.sum(-1).astype(jnp.float32)),
        _entropy_rank(jnp.sqrt(left)),
    )


def _gram(matrix: Float[Array, "... d r"]) -> Float[Array, "... r r"]:
    """The inner products of the columns."""
    return jnp.einsum("...dr,...ds->...rs", matrix, matrix, precision=_HIGHEST)


def leak(tree: PyTree[Array], basis: PyTree[Array]) -> dict[str, Float[Array, "..."]]:
    r"""The share of each adapter inside the subspace, :math:`\|Q^\top A\|_F / \|A\|_F`.

    Args:
      tree: constrained parameters; also meaningful for any other tree of that shape.
      basis: see `project_tree`.

    Returns:
      float32 ``[...]`` (one per stacked matrix) by path, in [0, 1]; 0 for a zero matrix.

    Examples:
      >>> import jax.numpy as jnp
      >>> basis = {"lora_a": jnp.array([[1.0], [0.0]])}
      >>> print(f"{leak({'lora_a': jnp.array([[3.0], [4.0]])}, basis)['lora_a']:.2f}")
      0.60
    """
    return {
        path: jnp.sqrt(share(energy(inside), energy(columns)))
        for path, inside, columns in coordinates(tree, basis)
    }


def max_leak(tree: PyTree[Array], basis: PyTree[Array]) -> Float[Array, ""]:
    """The largest `leak` of all matrices; 0 if none is constrained."""
    largest = [values.max() for values in leak(tree, basis).values()]
    return jnp.stack(largest).max() if largest else jnp.zeros([], jnp.float32)


def principal_cosines(
    first: PyTree[Array], second: PyTree[Array]
) -> dict[str, Float[Array, "... q"]]:
    r"""Cosines of the principal angles between two bases, the singular values of Q₁ᵀQ₂.

    Args:
      first: a basis tree.
      second: another; paths that only one protects are left out.

    Returns:
      float32 ``[..., min(q1, q2)]`` by path, descending, at most 1: the first is the cosine of
      the smallest angle. 0 where a zero column means a missing direction.

    Examples:
      >>> import jax.numpy as jnp
      >>> first, second = jnp.eye(3)[:, :2], jnp.eye(3)[:, 1:]
      >>> principal_cosines({"lora_a": first}, {"lora_a": second})["lora_a"].tolist()
      [1.0, 0.0]
    """
    ours, theirs = leaves_by_path(first), leaves_by_path(second)
    shared = sorted(p for p in ours.keys() & theirs.keys() if ours[p].size and theirs[p].size)
    return {
        path: jnp.minimum(
            decompositions.singular_values(
                jnp.einsum("...da,...db->...ab", ours[path], theirs[path], precision=_HIGHEST)
            ),
            1.0,
        )
        for path in shared
    }


def overlap_energy(first: PyTree[Array], second: PyTree[Array]) -> dict[str, Float[Array, "..."]]:
    """The share of the second subspace that lies in the first: its mean squared cosine.

    Two random subspaces of dimensions ``p`` and ``q`` in ``d`` have ``p / d`` on average.

    Args:
      first: a basis tree.
      second: another.

    Returns:
      float32 ``[...]`` by path, in [0, 1].
    """
    theirs = leaves_by_path(second)
    return {
        path: share(jnp.square(cosines).sum(-1), energy(theirs[path]))
        for path, cosines in principal_cosines(first, second).items()
    }


def activation_effect(
    tree: PyTree[Array], covariance: PyTree[Array]
) -> dict[str, Float[Array, "..."]]:
    r"""How much a LoRA changes a projection's outputs on data: :math:`\|X A B\|_F`.

    What forgetting feels, from the covariance :math:`X^\top X` alone:
    :math:`\|XAB\|_F^2 = \langle A^\top X^\top X A,\, B B^\top \rangle`. Compared before and
    after `project_tree` it says what share of an effect a basis takes away.

    Args:
      tree: a LoRA tree; a scale that its model multiplies by is not in the result.
      covariance: of the inputs, at the ``lora_a`` of each projection that shall be looked at.

    Returns:
      float32 ``[...]`` by the path of ``lora_a``.

    Examples:
      >>> import jax.numpy as jnp
      >>> tree = {"lora_a": jnp.array([[1.0], [0.0]]), "lora_b": jnp.array([[3.0, 4.0]])}
      >>> float(activation_effect(tree, {"lora_a": jnp.diag(jnp.array([4.0, 9.0]))})["lora_a"])
      10.0
    """
    leaves, sums = leaves_by_path(tree), leaves_by_path(covariance)
    effects = {}
    for path in (p for p in leaves if p in sums and leaf_name(p) == "lora_a"):
        a, b = leaves[path], leaves[f"{path.removesuffix('lora_a')}lora_b"]
        read = jnp.einsum("...dr,...de,...es->...rs", a, sums[path], a, precision=_HIGHEST)
        written = jnp.einsum("...ro,...so->...rs", b, b, precision=_HIGHEST)
        effects[path] = jnp.sqrt(jnp.maximum((read * written).sum((-2, -1)), 0.0))
    return effects


def effective_rank(tree: PyTree[Array], basis: PyTree[Array]) -> dict[str, Float[Array, "..."]]:
    r"""The effective rank left to each adapter outside the subspace.

    :math:`\exp(-\sum_i p_i \ln p_i)` of the shares :math:`p_i = \sigma_i / \sum_j \sigma_j` of
    the singular values of the projected matrix: ``r`` if all are equal, 0 if nothing is left.

    Args:
      tree: adapter parameters.
      basis: see `project_tree`.

    Returns:
      float32 ``[...]`` by path, between 0 and ``min(d, r)``.

    References:
      Roy and Vetterli, `The effective rank: a measure of effective dimensionality
      <https://ieeexplore.ieee.org/document/7098875>`_, 2007
    """
    outside = leaves_by_path(project_tree(tree, basis))
    ranks = {}
    for path, _, columns in coordinates(tree, basis):
        values = decompositions.singular_values(outside[path].astype(jnp.float32))
        # What rounding leaves of a matrix that lay wholly inside is no rank.
        floor = _ROUNDING * jnp.sqrt(energy(columns))[..., None]
        ranks[path] = _entropy_rank(jnp.where(values <= floor, 0.0, values))
    return ranks


def closed_share(basis: PyTree[Array]) -> Float[Array, ""]:
    """The share of the constrained matrices whose whole space is protected: these cannot learn.

    Args:
      basis: see `project_tree`.

    Returns:
      float32 scalar in [0, 1]; 0 if nothing is constrained.

    Examples:
      >>> import jax.numpy as jnp
      >>> float(closed_share({"up": {"lora_a": jnp.eye(3)}, "down": {"lora_a": jnp.eye(3, 2)}}))
      0.5
    """
    bases = [q for q in leaves_by_path(basis).values() if q.shape[-1]]
    closed = [jnp.any(q != 0.0, axis=-2).sum(-1) >= q.shape[-2] for q in bases]
    if not closed:
        return jnp.zeros([], jnp.float32)
    return jnp.concatenate([each.reshape(-1) for each in closed]).mean(dtype=jnp.float32)


def _entropy_rank(values: Float[Array, "... r"]) -> Float[Array, "..."]:
    """The exponential of the entropy of the values' shares."""
    total = values.sum(-1, keepdims=True)
    shares = share(values, total)
    entropy = -(shares * jnp.log(jnp.where(shares == 0.0, 1.0, shares))).sum(-1)
    return jnp.where(total[..., 0] == 0.0, 0.0, jnp.exp(entropy))
