"""Which leaf of a LoRA tree is constrained along which axis: the conventions of this package."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Side = Literal["input", "output", "both"]

_NAMES_OF_SIDE: Mapping[str, tuple[str, ...]] = {
    "input": ("lora_a",),
    "output": ("lora_b",),
    "both": ("lora_a", "lora_b"),
}


def map_with_path(fn: Callable[[str, Array], Any], tree: PyTree[Array]) -> Any:
    """The tree of ``fn("a/b/c", leaf)``."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: fn(_name(path), leaf), tree)


def protected_names(side: Side) -> tuple[str, ...]:
    """The names of the leaves that ``side`` protects."""
    if side not in _NAMES_OF_SIDE:
        raise ValueError(f"expected side to be one of {sorted(_NAMES_OF_SIDE)}, got {side!r}")
    return _NAMES_OF_SIDE[side]


def leaves_by_path(tree: PyTree[Array]) -> dict[str, Array]:
    """The leaves by their path ``"a/b/c"``."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def oriented(path: str, leaf: Array) -> Array:
    """The leaf as ``[..., d, n]`` with the constrained axis ``d`` first; its own inverse."""
    return jnp.swapaxes(leaf, -1, -2) if leaf_name(path) == "lora_b" else leaf


def matched_bases(tree: PyTree[Array], basis: PyTree[Array]) -> dict[str, Array]:
    """The basis of each leaf of ``tree`` by path; raises unless each has one that fits it.

    The basis may cover more than the tree, since `optax.masked` hides part of the updates.
    """
    leaves, bases = leaves_by_path(tree), leaves_by_path(basis)
    missing = sorted(leaves.keys() - bases.keys())
    if missing:
        raise ValueError(
            f"expected a basis for each of {len(leaves)} leaves, got none for {missing}; "
            "extend_basis(basis, tree) leaves these unconstrained"
        )
    for path, leaf in leaves.items():
        q = bases[path]
        if q.shape[-1] and constrained_shape(path, leaf) != q.shape[:-1]:
            raise ValueError(
                f"{path}: expected a basis of shape {(*constrained_shape(path, leaf), 'q')} "
                f"for a leaf of shape {leaf.shape}, got {q.shape}"
            )
    return {path: bases[path] for path in leaves}


def coordinates(tree: PyTree[Array], basis: PyTree[Array]) -> Iterator[tuple[str, Array, Array]]:
    """Path, coordinates ``Qᵀ U`` inside the subspace and all of ``U`` of each constrained leaf."""
    bases = matched_bases(tree, basis)
    for path, leaf in leaves_by_path(tree).items():
        if bases[path].shape[-1]:
            columns = oriented(path, leaf).astype(jnp.float32)
            q = jnp.swapaxes(bases[path], -1, -2)
            yield path, jnp.matmul(q, columns, precision=jax.lax.Precision.HIGHEST), columns


def energy(matrix: Float[Array, "... d r"]) -> Float[Array, "..."]:
    """The squared Frobenius norm."""
    return jnp.square(matrix).sum((-2, -1))


def share(part: Array, whole: Array) -> Array:
    """The ratio of a part to its whole, 0 where both are 0; NaN stays NaN."""
    return part / jnp.where(whole == 0.0, 1.0, whole)


def leaf_name(path: str) -> str:
    """The last part of a path."""
    return path.rpartition("/")[2]


def constrained_shape(path: str, leaf: Array) -> tuple[int, ...]:
    """``[*stack, d]`` of a leaf; a leaf of less than two axes has only its own."""
    if leaf.ndim < 2:
        return tuple(leaf.shape)
    *stack, first, last = leaf.shape
    return (*stack, last if leaf_name(path) == "lora_b" else first)


def _name(path: tuple[Any, ...]) -> str:
    """A key path as ``"a/b/c"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
