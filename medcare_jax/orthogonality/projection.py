"""Keeping parameters out of a subspace: the projection as a pure function and in optax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from medcare_jax.orthogonality.leaves import (
    coordinates,
    energy,
    leaves_by_path,
    map_with_path,
    matched_bases,
    oriented,
    share,
)

_HIGHEST = jax.lax.Precision.HIGHEST


def project_tree(
    tree: PyTree[Array], basis: PyTree[Array], *, strength: float | Float[Array, ""] = 1.0
) -> PyTree[Array]:
    r"""The tree without its component inside the protected subspace.

    A leaf ``lora_b`` ``[..., r, out]`` becomes :math:`U - s\,U Q Q^\top`; any other leaf
    ``[..., d, r]`` becomes :math:`U - s\,Q Q^\top U`. Computed in float32 at the highest matmul
    precision, returned in the leaf's dtype. Use it on the initial value of what will be
    constrained: `project_updates` keeps a complement, it does not find one.

    Args:
      tree: parameters or updates.
      basis: a basis tree with an orthonormal ``[..., d, q]`` for each leaf of ``tree``; at width
        0 the leaf is returned as it is. Leaves that ``tree`` lacks are ignored.
      strength: share ``s`` of the component to remove, in [0, 1]; may be traced.

    Returns:
      A tree like ``tree``.

    Raises:
      ValueError: a leaf has no basis or one that does not fit, or strength is out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> tree = {"lora_a": jnp.array([[3.0], [4.0]])}  # [d=2, r=1]
      >>> basis = {"lora_a": jnp.array([[1.0], [0.0]])}  # [d=2, q=1]
      >>> project_tree(tree, basis)["lora_a"].tolist()
      [[0.0], [4.0]]
      >>> project_tree(tree, basis, strength=0.5)["lora_a"].tolist()
      [[1.5], [4.0]]
    """
    _check_strength(strength)
    bases = matched_bases(tree, basis)

    def project(path: str, leaf: Array) -> Array:
        if not bases[path].shape[-1]:
            return leaf
        wide = _widened(leaf)
        part = jnp.asarray(strength, wide.dtype)
        return (wide - part * _component(path, wide, bases[path])).astype(leaf.dtype)

    return map_with_path(project, tree)


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
    removed = sum((energy(x).sum() for _, x, _ in coordinates(updates, basis)), start=zero)
    whole = [jnp.square(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(updates)]
    return share(removed, sum(whole, start=zero))


class ProjectState(NamedTuple):
    """State of `project_updates`."""

    removed: Float[Array, ""]  # float32, share of the last update's squared norm taken away


def project_updates(
    *, strength: float | Float[Array, ""] = 1.0
) -> optax.GradientTransformationExtraArgs:
    r"""Removes from every update its component inside a frozen subspace.

    Put it last in the chain. Adam's element-wise scaling and weight decay both turn an update
    out of the complement again, so a projected *gradient* does not stay projected.

    Args:
      strength: share of the component to remove, in [0, 1]; may be a traced scalar, so that
        ``vmap`` over strengths works, or a schedule through `optax.inject_hyperparams`.

    Returns:
      A transform whose ``update`` needs the keyword ``basis``, see `project_tree`. It is an
      argument and not a constant of the compiled step: it is sharded, checkpointed and grown
      like any other array. Unknown extra arguments are ignored. Its state is a `ProjectState`:
      ``optax.tree.get(state, "removed")`` is what to log.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = project_updates()
      >>> updates = {"lora_a": jnp.array([[3.0], [4.0]])}  # [d=2, r=1]
      >>> basis = {"lora_a": jnp.array([[1.0], [0.0]])}  # [d=2, q=1]
      >>> updates, _ = tx.update(updates, tx.init(updates), basis=basis)
      >>> updates["lora_a"].tolist()
      [[0.0], [4.0]]

    References:
      Giraud et al., `Rounding error analysis of the classical Gram-Schmidt orthogonalization
      process <https://doi.org/10.1007/s00211-005-0615-4>`_, 2005 (why it is applied twice)

      Saha et al., `Gradient Projection Memory <https://arxiv.org/abs/2103.09762>`_, 2021

      Wang et al., `Training Networks in Null Space of Feature Covariance for Continual Learning
      <https://arxiv.org/abs/2103.07113>`_, 2021 (projects the update, not the gradient)
    """
    _check_strength(strength)

    def init_fn(params: optax.Params) -> ProjectState:
        del params
        return ProjectState(removed=jnp.zeros([], jnp.float32))

    def update_fn(
        updates: optax.Updates,
        state: ProjectState,
        params: optax.Params | None = None,
        *,
        basis: PyTree[Array],
        **extra_args: Any,
    ) -> tuple[optax.Updates, ProjectState]:
        del state, params, extra_args
        part = jnp.asarray(strength, jnp.float32)
        removed = part * (2.0 - part) * removed_share(updates, basis)
        return project_tree(updates, basis, strength=strength), ProjectState(removed)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class RetractState(NamedTuple):
    """State of `retract`."""

    step: Int[Array, ""]  # int32, updates seen so far


def retract(*, every_steps: int) -> optax.GradientTransformationExtraArgs:
    """Every so many steps, moves the parameters themselves back into the complement.

    `project_updates` leaves only rounding behind; over very long runs, or from a start that was
    not projected, this clears it: the update of each ``every_steps``-th step is changed such
    that parameters plus update have no component inside the subspace. Put it after
    `project_updates`.

    Args:
      every_steps: period in updates, at least 1.

    Returns:
      A transform whose ``update`` needs ``params`` and the keyword ``basis``.

    Raises:
      ValueError: ``every_steps`` is below 1; at update, ``params`` is missing.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = retract(every_steps=1)
      >>> params = {"lora_a": jnp.array([[0.5], [4.0]])}  # leaks 0.5
      >>> basis = {"lora_a": jnp.array([[1.0], [0.0]])}
      >>> updates = {"lora_a": jnp.array([[0.0], [1.0]])}
      >>> updates, _ = tx.update(updates, tx.init(params), params, basis=basis)
      >>> updates["lora_a"].tolist()
      [[-0.5], [1.0]]
    """
    if every_steps < 1:
        raise ValueError(f"expected every_steps of at least 1, got {every_steps}")

    def init_fn(params: optax.Params) -> RetractState:
        del params
        return RetractState(step=jnp.zeros([], jnp.int32))

    def update_fn(
        updates: optax.Updates,
        state: RetractState,
        params: optax.Params | None = None,
        *,
        basis: PyTree[Array],
        **extra_args: Any,
    ) -> tuple[optax.Updates, RetractState]:
        del extra_args
        if params is None:
            raise ValueError("retract moves the parameters: expected update(..., params), got None")
        step = optax.safe_increment(state.step)
        updates = jax.lax.cond(
            step % every_steps == 0,
            lambda: _retracted(updates, params, basis),
            lambda: updates,
        )
        return updates, RetractState(step=step)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _retracted(
    updates: PyTree[Array], params: PyTree[Array], basis: PyTree[Array]
) -> PyTree[Array]:
    """The updates that bring ``params`` into the complement."""
    bases, starts = matched_bases(updates, basis), leaves_by_path(params)

    def retract_leaf(path: str, update: Array) -> Array:
        if not bases[path].shape[-1]:
            return update
        wide = _widened(update)
        moved = _widened(starts[path]) + wide
        return (wide - _component(path, moved, bases[path])).astype(update.dtype)

    return map_with_path(retract_leaf, updates)


def _widened(leaf: Array) -> Array:
    """The leaf in at least float32."""
    return leaf if leaf.dtype.itemsize > 4 else leaf.astype(jnp.float32)


def _component(path: str, leaf: Array, basis: Array) -> Array:
    """The part of a leaf that lies inside the subspace."""
    q = basis.astype(leaf.dtype)
    columns = oriented(path, leaf)

    def inside(rows: Array) -> Array:
        coordinates = jnp.matmul(jnp.swapaxes(q, -1, -2), rows, precision=_HIGHEST)
        return jnp.matmul(q, coordinates, precision=_HIGHEST)

    # Twice: a float32 basis is orthonormal to 1e-6 only, and what one pass misses always points
    # the same way, so over 1,000 steps it adds up to a leak of 1e-5. The second pass finds it.
    first = inside(columns)
    return oriented(path, first + inside(columns - first))


def _check_strength(strength: float | Array) -> None:
    """Refuses a known strength out of range; a traced one is the caller's to know."""
    if not isinstance(strength, jax.core.Tracer) and not 0.0 <= strength <= 1.0:
        raise ValueError(f"expected a strength in [0, 1], got {strength}")
