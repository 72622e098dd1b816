"""Stacks of matrices one after another: as NumPy, and without a batch that LAPACK could cut."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.orthogonality import decompositions, measure, orthonormal_basis

STACKS = [(), (1,), (5,), (2, 3)]


def random(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def symmetric(*stack):
    x = random(*stack, 4, 4)
    return x + np.swapaxes(x, -1, -2)


@pytest.mark.parametrize("stack", STACKS)
def test_eigenvalues_and_vectors(stack):
    x = symmetric(*stack)
    values, vectors = decompositions.eigh(jnp.asarray(x))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(x), atol=1e-5)
    np.testing.assert_allclose(decompositions.eigvalsh(jnp.asarray(x)), values, atol=1e-5)
    np.testing.assert_allclose(x @ vectors, values[..., None, :] * vectors, atol=1e-5)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_thin_factors(stack, shape):
    x = random(*stack, *shape)
    q, r = decompositions.qr(jnp.asarray(x))
    np.testing.assert_allclose(q @ r, x, atol=1e-5)
    u, values = decompositions.svd(jnp.asarray(x))
    assert u.shape == (*stack, shape[0], 3)
    np.testing.assert_allclose(values, np.linalg.svd(x, compute_uv=False), atol=1e-5)
    np.testing.assert_allclose(decompositions.singular_values(jnp.asarray(x)), values, atol=1e-5)
    inside = u @ (np.swapaxes(u, -1, -2) @ x)
    np.testing.assert_allclose(inside, x, atol=1e-5)


def batches(fn, *arguments):
    """The largest stack that any LAPACK kernel of a CPU program is given."""
    program = jax.jit(fn).lower(*arguments).as_text()
    calls = re.findall(r"@lapack_\w+\(%[^)]*\).*?: \(tensor<([\dx]+)xf32>", program)
    shapes = [[int(size) for size in call.split("x")] for call in calls]
    return max(int(np.prod(shape[:-2])) for shape in shapes)


def test_no_kernel_gets_a_stack():
    tree = {"lora_a": jnp.asarray(random(5, 8, 2))}
    basis = orthonormal_basis({"lora_a": jnp.asarray(random(5, 8, 3))})
    assert batches(measure, tree, basis) == 1
    assert batches(orthonormal_basis, tree) == 1
    swept = jax.vmap(measure, in_axes=({"lora_a": 1}, None))
    assert batches(swept, {"lora_a": jnp.asarray(random(5, 7, 8, 2))}, basis) == 1
    # The control: what a stack looks like here.
    assert batches(jnp.linalg.eigvalsh, jnp.asarray(symmetric(5))) == 5
