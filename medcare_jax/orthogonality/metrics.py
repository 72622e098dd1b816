"""What the constraint does: cheap numbers to log, all jittable.

Per-leaf results are dicts by path, with one value per matrix of a stack; leaves that the basis
leaves unconstrained do not appear.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from medcare_jax.orthogonality.leaves import leaves_by_path, matched_bases, oriented
from medcare_jax.orthogonality.projection import project_tree

_HIGHEST = jax.lax.Precision.HIGHEST
_ROUNDING = 1e-5  # relative to the Frobenius norm before projecting


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
        path: jnp.sqrt(_share(_energy(inside), _energy(columns)))
        for path, inside, columns in _constrained(tree, basis)
    }


def max_leak(tree: PyTree[Array], basis: PyTree[Array]) -> Float[Array, ""]:
    """The largest `leak` of all matrices; 0 if none is constrained."""
    largest = [values.max() for values in leak(tree, basis).values()]
    return jnp.stack(largest).max() if largest else jnp.zeros([], jnp.float32)


def removed_share(updates: PyTree[Array], basis: PyTree[Array]) -> Float[Array, ""]:
    r"""The share of the whole update's squared norm that the projection removes.

    Args:
      updates: updates *before* `project_updates`. In one jitted step the product
        :math:`Q^\top U` is computed once for both.
      basis: see `project_tree`.

    Returns:
      float32 scalar in [0, 1], over all leaves, unconstrained ones included; 0 for no update.
    """
    zero = jnp.zeros([], jnp.float32)
    removed = sum((_energy(x).sum() for _, x, _ in _constrained(updates, basis)), start=zero)
    whole = [jnp.square(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(updates)]
    return _share(removed, sum(whole, start=zero))


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
            jnp.linalg.svd(
                jnp.einsum("...da,...db->...ab", ours[path], theirs[path], precision=_HIGHEST),
                compute_uv=False,
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
        path: _share(jnp.square(cosines).sum(-1), _energy(theirs[path]))
        for path, cosines in principal_cosines(first, second).items()
    }


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
    for path, _, columns in _constrained(tree, basis):
        values = jnp.linalg.svd(outside[path].astype(jnp.float32), compute_uv=False)
        # What rounding leaves of a matrix that lay wholly inside is no rank.
        floor = _ROUNDING * jnp.sqrt(_energy(columns))[..., None]
        ranks[path] = _entropy_rank(jnp.where(values <= floor, 0.0, values))
    return ranks


def _constrained(tree: PyTree[Array], basis: PyTree[Array]) -> Iterator[tuple[str, Array, Array]]:
    """Path, coordinates inside the subspace and all coordinates of each constrained leaf."""
    bases = matched_bases(tree, basis)
    for path, leaf in leaves_by_path(tree).items():
        if bases[path].shape[-1]:
            columns = oriented(path, leaf).astype(jnp.float32)
            q = jnp.swapaxes(bases[path], -1, -2)
            yield path, jnp.matmul(q, columns, precision=_HIGHEST), columns


def _energy(matrix: Float[Array, "... d r"]) -> Float[Array, "..."]:
    """The squared Frobenius norm."""
    return jnp.square(matrix).sum((-2, -1))


def _share(part: Array, whole: Array) -> Array:
    """The ratio of a part to its whole, 0 where both are 0; NaN stays NaN."""
    return part / jnp.where(whole == 0.0, 1.0, whole)


def _entropy_rank(values: Float[Array, "... r"]) -> Float[Array, "..."]:
    """The exponential of the entropy of the values' shares."""
    total = values.sum(-1, keepdims=True)
    shares = _share(values, total)
    entropy = -(shares * jnp.log(jnp.where(shares == 0.0, 1.0, shares))).sum(-1)
    return jnp.where(total[..., 0] == 0.0, 0.0, jnp.exp(entropy))
