"""Decompositions of stacks of matrices, on a CPU one matrix after another.

jaxlib's LAPACK kernels cut a stack into tasks for the thread pool that they themselves run in, and
wait for them there (jaxlib 0.10.2, ``ParallelBatchMap``). As many of them at once as the pool has
threads, two on two cores, wait for each other for ever. A kernel that is given one matrix needs no
task and waits for nobody. Accelerators take the stack whole.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float

_Result = TypeVar("_Result")


def eigh(matrices: Float[Array, "... n n"]) -> tuple[Float[Array, "... n"], Array]:
    """Eigenvalues, ascending, and eigenvectors ``[..., n, n]`` of symmetric matrices.

    >>> eigh(jnp.diag(jnp.array([3.0, 2.0])))[0].tolist()
    [2.0, 3.0]
    """
    return _apply(_eigh, matrices)


def eigvalsh(matrices: Float[Array, "... n n"]) -> Float[Array, "... n"]:
    """Eigenvalues of symmetric matrices, ascending."""
    return _apply(_eigvalsh, matrices)


def qr(matrices: Float[Array, "... d n"]) -> tuple[Array, Array]:
    """Q ``[..., d, min(d, n)]`` and R of matrices."""
    return _apply(_qr, matrices)


def svd(matrices: Float[Array, "... d n"]) -> tuple[Array, Float[Array, "... k"]]:
    """Left singular vectors ``[..., d, min(d, n)]`` and singular values, descending."""
    return _apply(_svd, matrices)


def singular_values(matrices: Float[Array, "... d n"]) -> Float[Array, "... k"]:
    """Singular values of matrices, descending.

    >>> singular_values(jnp.ones((3, 2, 4))).shape
    (3, 2)
    """
    return _apply(lambda x: jnp.linalg.svd(x, compute_uv=False), matrices)


def _eigh(matrices: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(matrices)
    return values, vectors


def _eigvalsh(matrices: Array) -> Array:
    values: Array = jnp.linalg.eigvalsh(matrices)
    return values


def _qr(matrices: Array) -> tuple[Array, Array]:
    q, r = jnp.linalg.qr(matrices)
    return q, r


def _svd(matrices: Array) -> tuple[Array, Array]:
    u, values, _ = jnp.linalg.svd(matrices, full_matrices=False)
    return u, values


def _apply(decompose: Callable[[Array], _Result], matrices: Array) -> _Result:
    """The decomposition of each matrix of a stack, also where that stack is itself mapped over."""
    stack = matrices.shape[:-2]
    flat = matrices.reshape(-1, *matrices.shape[-2:]) if stack else matrices[None]
    in_turn = jax.vmap(sequential_vmap(decompose))  # type: ignore[no-untyped-call]
    found: _Result = jax.lax.platform_dependent(flat, cpu=in_turn, default=decompose)
    return cast(_Result, jax.tree.map(lambda leaf: leaf.reshape(*stack, *leaf.shape[1:]), found))
