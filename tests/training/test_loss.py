"""The chunked loss against the dense one."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.training.loss import NextTokens, next_tokens, summed_nll

B, T, D, V = 3, 14, 5, 11


@pytest.fixture(scope="module")
def case():
    keys = jax.random.split(jax.random.key(3), 4)
    hidden = jax.random.normal(keys[0], (B, T, D))
    kernel = jax.random.normal(keys[1], (D, V))
    tokens = jax.random.randint(keys[2], (B, T), 0, V)
    segments = jnp.array([[1] * 6 + [2] * 5 + [0] * 3, [1] * T, [0] * T], jnp.int32)
    is_target = jax.random.bernoulli(keys[3], 0.4, (B, T)) & (segments > 0)
    return hidden, kernel, next_tokens(tokens, segments, is_target)


def dense(hidden, kernel, targets):
    """The sum written out over whole logits."""
    log_probs = jax.nn.log_softmax(hidden @ kernel)
    picked = jnp.take_along_axis(log_probs, targets.labels[..., None], axis=-1)[..., 0]
    return -jnp.sum(picked * targets.weights)


@pytest.mark.parametrize("chunk", [1, 4, 14, 50])
def test_equals_the_dense_loss_and_gradient(case, chunk):
    hidden, kernel, targets = case
    loss = lambda h: summed_nll(h, kernel, targets, chunk=chunk)
    value, gradient = jax.jit(jax.value_and_grad(loss))(hidden)
    expected, expected_gradient = jax.value_and_grad(dense)(hidden, kernel, targets)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=2e-6)


def test_the_gradient_follows_a_factor(case):
    hidden, kernel, targets = case
    loss = lambda h: 3.0 * summed_nll(h, kernel, targets, chunk=4)
    np.testing.assert_allclose(
        jax.grad(loss)(hidden), 3.0 * jax.grad(dense)(hidden, kernel, targets), atol=5e-6
    )


def test_no_targets_cost_nothing_and_give_zero(case):
    hidden, kernel, targets = case
    nothing = targets._replace(weights=jnp.zeros((B, T)))
    value, gradient = jax.value_and_grad(lambda h: summed_nll(h, kernel, nothing, chunk=4))(hidden)
    assert value == 0.0
    assert not gradient.any()


def test_whole_logits_never_exist():
    hidden, kernel = jnp.zeros((2, 64, 8)), jnp.zeros((8, 1000))
    labels, weights = jnp.zeros((2, 64), jnp.int32), jnp.ones((2, 64))
    loss = lambda h: summed_nll(h, kernel, NextTokens(labels, weights), chunk=16)
    sizes = [np.prod(v.aval.shape) for v in _values(jax.make_jaxpr(jax.grad(loss))(hidden).jaxpr)]
    assert 2 * 16 * 1000 in sizes
    assert max(sizes) < 2 * 64 * 1000


def _values(jaxpr):
    """All values of a program, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _values(getattr(inner, "jaxpr", inner))


def test_labels_stay_in_their_segment_and_skip_padding():
    row = lambda *values: jnp.array([values])
    labels, weights = next_tokens(
        row(5, 6, 7, 8, 9), row(1, 1, 2, 2, 0), row(True, True, True, True, True)
    )
    assert labels.tolist() == [[6, 7, 8, 9, 0]]
    assert weights.tolist() == [[1, 0, 1, 0, 0]]
