"""Where a protected subspace comes from, and the tree that carries it.

A *basis tree* mirrors a LoRA tree. Its leaf at ``.../lora_a`` is ``[..., d, q]``: orthonormal
columns in the space of the layer's inputs. Its leaf at ``.../lora_b`` is ``[..., out, q]``:
orthonormal columns in the space of the layer's outputs. Width ``q = 0`` means unconstrained, and
a zero column is a missing direction, so that stacked layers of different rank share one array.
Leading axes (layers, experts) are batch axes. Everything is float32.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from medcare_jax.orthogonality import decompositions
from medcare_jax.orthogonality.leaves import (
    Side,
    constrained_shape,
    leaf_name,
    leaves_by_path,
    map_with_path,
    oriented,
    protected_names,
)
from medcare_jax.orthogonality.selection import check_energy, checked, counts, keep, reaches

_PARTNER = {"lora_a": "lora_b", "lora_b": "lora_a"}
_HIGHEST = jax.lax.Precision.HIGHEST


def orthonormal_basis(
    lora_tree: PyTree[Array], *, side: Side = "input", tolerance: float = 1e-5
) -> PyTree[Array]:
    r"""Basis of what a LoRA reads (span of A's columns) or writes (span of B's rows).

    The rank is decided per matrix by its singular values: a direction counts if its value
    exceeds ``tolerance`` times the largest. Dependent or zero columns therefore add no noise
    directions. Vectors of your own are orthonormalised the same way: put them at ``lora_a``.

    Args:
      lora_tree: any tree with leaves named ``lora_a`` ``[..., d, r]`` and ``lora_b``
        ``[..., r, out]``, of any float dtype; other leaves are left unconstrained.
      side: ``"input"`` protects along ``lora_a``, ``"output"`` along ``lora_b``.
      tolerance: smallest singular value that counts, relative to the largest.

    Returns:
      A tree like ``lora_tree``, float32: ``[..., d, q]`` at protected leaves, where ``q`` is the
      largest rank in the stack, and width 0 elsewhere. Inside ``jit`` or ``vmap``, where a shape
      cannot depend on values, ``q`` stays ``min(d, r)`` and missing directions are zero columns.

    Raises:
      ValueError: no leaf has the name that ``side`` protects, or a value is not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> a = jnp.array([[2.0, 4.0], [0.0, 0.0], [0.0, 0.0]])  # [d=3, r=2], rank 1
      >>> basis = orthonormal_basis({"up_proj": {"lora_a": a, "lora_b": jnp.zeros((2, 5))}})
      >>> jnp.abs(basis["up_proj"]["lora_a"]).tolist(), basis["up_proj"]["lora_b"].shape
      ([[1.0], [0.0], [0.0]], (5, 0))
    """

    def span(path: str, leaf: Array) -> Array:
        return _span(oriented(path, checked(path, leaf)), tolerance)

    return _map_protected(span, lora_tree, side)


def product_basis(
    lora_tree: PyTree[Array],
    *,
    energy: float = 0.99,
    side: Side = "input",
    tolerance: float = 1e-5,
) -> PyTree[Array]:
    r"""Basis of the leading singular vectors of A·B, as many as hold a share of its energy.

    Unlike the span of A alone, this weighs each direction by what B makes of it. With thin
    factors :math:`A = Q_A R_A` and :math:`B^\top = Q_B R_B` only the small
    :math:`R_A R_B^\top` is decomposed; the dense product never exists.

    Args:
      lora_tree: as for `orthonormal_basis`; each protected leaf needs its partner beside it.
      energy: share of the sum of squared singular values to keep, in (0, 1]; the smallest
        number of vectors that reaches it is taken, separately for each matrix of a stack.
      side: left singular vectors (``"input"``), right ones (``"output"``), or both.
      tolerance: smallest singular value that counts, relative to the largest.

    Returns:
      A basis tree like `orthonormal_basis`.

    Raises:
      ValueError: as `orthonormal_basis`; also ``energy`` out of range, or a missing partner.

    Examples:
      >>> import jax.numpy as jnp
      >>> tree = {"lora_a": jnp.eye(3, 2), "lora_b": jnp.diag(jnp.array([9.0, 1.0]))}
      >>> product_basis(tree, energy=0.9)["lora_a"].shape, product_basis(tree, energy=1.0)[
      ...     "lora_a"
      ... ].shape
      ((3, 1), (3, 2))
    """
    check_energy(energy)
    leaves = leaves_by_path(lora_tree)

    def leading(path: str, leaf: Array) -> Array:
        partner = _partner_of(path, leaves)
        q, own = decompositions.qr(oriented(path, checked(path, leaf)))
        _, other = decompositions.qr(oriented(partner, checked(partner, leaves[partner])))
        core = jnp.einsum("...ar,...br->...ab", own, other, precision=_HIGHEST)
        u, values = decompositions.svd(core)
        is_kept = counts(values, tolerance) & reaches(values**2, energy)
        return keep(jnp.matmul(q, u, precision=_HIGHEST), is_kept)

    return _map_protected(leading, lora_tree, side)


def covariance_basis(
    covariance: PyTree[Float[Array, "... d d"]], *, energy: float = 0.95, tolerance: float = 1e-6
) -> PyTree[Float[Array, "... d q"]]:
    """Basis of the leading eigenvectors of an uncentred covariance of activations.

    Args:
      covariance: sums of outer products from `accumulate_covariance`, at the paths that they
        shall protect: inputs of a projection at ``.../lora_a``, its outputs at ``.../lora_b``.
      energy: share of the trace to keep, in (0, 1].
      tolerance: smallest eigenvalue that counts, relative to the largest.

    Returns:
      A basis tree like ``covariance``; give it the leaves it lacks with `extend_basis`.

    Raises:
      ValueError: ``energy`` out of range, a leaf that is not square, or a value not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> covariance_basis({"lora_a": jnp.diag(jnp.array([1.0, 98.0, 1.0]))}, energy=0.9)[
      ...     "lora_a"
      ... ].shape
      (3, 1)

    References:
      Saha et al., `Gradient Projection Memory <https://arxiv.org/abs/2103.09762>`_, 2021
    """
    check_energy(energy)

    def leading(path: str, leaf: Array) -> Array:
        if leaf.ndim < 2 or leaf.shape[-1] != leaf.shape[-2]:
            raise ValueError(
                f"{path}: expected a covariance [..., d, d], got shape {leaf.shape}; "
                "build it with accumulate_covariance"
            )
        values, vectors = decompositions.eigh(checked(path, leaf))
        values, vectors = jnp.flip(values, -1), jnp.flip(vectors, -1)
        is_kept = counts(values, tolerance) & reaches(jnp.maximum(values, 0.0), energy)
        return keep(vectors, is_kept)

    return map_with_path(leading, covariance)


def narrow_basis(
    basis: PyTree[Float[Array, "... d q"]],
    covariance: PyTree[Float[Array, "... d d"]],
    *,
    energy: float,
) -> PyTree[Float[Array, "... d p"]]:
    """The leading part of a covariance's basis: that of a smaller energy, nothing decomposed again.

    Args:
      basis: of `covariance_basis`, of the same covariance and at least this energy.
      covariance: what it was made from.
      energy: share of the trace to keep, in (0, 1].

    Returns:
      What `covariance_basis` gives for that energy.

    Raises:
      ValueError: ``energy`` out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> covariance = {"lora_a": jnp.diag(jnp.array([40.0, 59.0, 1.0]))}
      >>> wide = covariance_basis(covariance, energy=0.95)
      >>> narrow_basis(wide, covariance, energy=0.5)["lora_a"].shape, wide["lora_a"].shape
      ((3, 1), (3, 2))
    """
    check_energy(energy)

    def leading(columns: Array, total: Array) -> Array:
        total = total.astype(jnp.float32)
        values = jnp.einsum("...dq,...de,...eq->...q", columns, total, columns, precision=_HIGHEST)
        unseen = jnp.trace(total, axis1=-2, axis2=-1)[..., None] - values.sum(-1, keepdims=True)
        return keep(columns, reaches(values, energy, unseen=jnp.maximum(unseen, 0.0)))

    return jax.tree.map(leading, basis, covariance)


def accumulate_covariance(
    covariance: PyTree[Float[Array, "... d d"]], activations: PyTree[Array]
) -> PyTree[Float[Array, "... d d"]]:
    """The covariance with the outer products of more activations added: a pure, streaming sum.

    Sharded activations stay where they are: under ``jit`` each device sums its own tokens and
    one all-reduce adds the ``[d, d]`` results.

    Args:
      covariance: float32 ``[*stack, d, d]`` per leaf; start from zeros.
      activations: same paths, ``[*stack, *tokens, d]``, any float dtype. Padding must be zero:
        a zero row adds nothing.

    Returns:
      A tree like ``covariance``.

    Examples:
      >>> import jax.numpy as jnp
      >>> accumulate_covariance(jnp.zeros((2, 2)), jnp.array([[1.0, 2.0], [0.0, 0.0]])).tolist()
      [[1.0, 2.0], [2.0, 4.0]]
    """

    def add(total: Array, x: Array) -> Array:
        stack = total.shape[:-2]
        if x.shape[: len(stack)] != stack or x.shape[-1] != total.shape[-1]:
            raise ValueError(
                f"expected activations [*{stack}, *tokens, {total.shape[-1]}] for a covariance "
                f"{total.shape}, got {x.shape}"
            )
        rows = x.astype(jnp.float32).reshape(*stack, -1, x.shape[-1])
        return total + jnp.einsum("...td,...te->...de", rows, rows, precision=_HIGHEST)

    return jax.tree.map(add, covariance, activations)


def union(first: PyTree[Array], second: PyTree[Array], *, tolerance: float = 1e-5) -> PyTree[Array]:
    """Basis of all that either basis protects: how a subspace grows from stage to stage.

    Args:
      first: a basis tree of nested dicts.
      second: another; a leaf that only one of the two has is taken as it is.
      tolerance: as for `orthonormal_basis`, of the columns of both side by side.

    Returns:
      A basis tree with the paths of both. Inside ``jit`` the widths add up (at most ``d``).

    Examples:
      >>> import jax.numpy as jnp
      >>> x, xy = jnp.eye(3)[:, :1], jnp.eye(3)[:, :2]
      >>> union({"lora_a": x}, {"lora_a": xy})["lora_a"].shape
      (3, 2)
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        both = {
            key: union(first[key], second[key], tolerance=tolerance)
            for key in first.keys() & second.keys()
        }
        return {**first, **second, **both}
    if isinstance(first, Mapping) or isinstance(second, Mapping):
        raise ValueError("expected the same path to be a leaf in both bases, or in neither")
    if first.shape[:-1] != second.shape[:-1]:
        raise ValueError(
            f"expected bases that differ in width only, got {first.shape} and {second.shape}"
        )
    return _span(jnp.concatenate([first, second], axis=-1), tolerance)


def extend_basis(basis: PyTree[Array], tree: PyTree[Array]) -> PyTree[Array]:
    """The basis with a leaf for every leaf of ``tree``: width 0 (unconstrained) where it has none.

    ``extend_basis({}, tree)`` constrains nothing.

    Args:
      basis: a basis tree.
      tree: the parameters that will be constrained, or their shapes.

    Returns:
      A tree of the structure of ``tree``.

    Raises:
      ValueError: the basis protects a path that ``tree`` lacks, most likely a misspelt one.

    Examples:
      >>> import jax.numpy as jnp
      >>> tree = {"lora_a": jnp.ones((3, 2)), "lora_b": jnp.ones((2, 5))}
      >>> extend_basis({"lora_a": jnp.eye(3)[:, :1]}, tree)["lora_b"].shape
      (5, 0)
    """
    bases = leaves_by_path(basis)
    unknown = sorted(p for p in bases if p not in leaves_by_path(tree) and bases[p].shape[-1])
    if unknown:
        raise ValueError(f"the basis protects {unknown}, which the tree to constrain does not have")
    return map_with_path(
        lambda path, leaf: bases[path] if path in bases else _empty(path, leaf), tree
    )


def _map_protected(
    fn: Callable[[str, Array], Array], tree: PyTree[Array], side: Side
) -> PyTree[Array]:
    """The tree of ``fn`` at the leaves that ``side`` protects and of width 0 elsewhere."""
    names = protected_names(side)
    found = {leaf_name(path) for path in leaves_by_path(tree)}
    absent = [name for name in names if name not in found]
    if absent:
        raise ValueError(
            f"expected leaves named {list(names)} for side={side!r}, found none named {absent} "
            f"among {sorted(found)}; without them nothing would be protected"
        )

    def visit(path: str, leaf: Array) -> Array:
        return fn(path, leaf) if leaf_name(path) in names else _empty(path, leaf)

    return map_with_path(visit, tree)


def _partner_of(path: str, leaves: Mapping[str, Array]) -> str:
    """The path of the other factor of the same LoRA."""
    parent, slash, name = path.rpartition("/")
    partner = f"{parent}{slash}{_PARTNER[name]}"
    if partner not in leaves:
        raise ValueError(f"expected {partner} beside {path}: the product needs both factors")
    return partner


def _empty(path: str, leaf: Array) -> Array:
    """The basis of width 0 for one leaf."""
    return jnp.zeros((*constrained_shape(path, leaf), 0), jnp.float32)


def _span(columns: Array, tolerance: float) -> Array:
    """An orthonormal basis ``[..., d, q]`` of the columns' span."""
    if columns.shape[-1] == 0:
        return columns
    u, values = decompositions.svd(columns)
    return keep(u, counts(values, tolerance))
