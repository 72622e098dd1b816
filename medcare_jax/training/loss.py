"""The loss: summed negative log-likelihood of target tokens, without the whole logits."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from medcare_jax.shapes import Hidden, Segments, Targets, Tokens
from medcare_jax.sharding import gather_weight


class NextTokens(NamedTuple):
    """What each position has to predict.

    Attributes:
      labels: The next token, int32 [b, t].
      weights: 1 where the next token is a target of the same segment, else 0; float32 [b, t].
    """

    labels: Int[Array, "b t"]
    weights: Float[Array, "b t"]


def next_tokens(tokens: Tokens, segments: Segments, is_target: Targets) -> NextTokens:
    """Labels and weights of a batch whose `is_target` marks the label tokens themselves.

    >>> row = lambda *values: jnp.array([values])
    >>> labels, weights = next_tokens(row(7, 8, 9), row(1, 1, 2), row(False, True, True))
    >>> labels.tolist(), weights.tolist()
    ([[8, 9, 0]], [[1.0, 0.0, 0.0]])
    """
    ahead = lambda x: jnp.pad(x[:, 1:], ((0, 0), (0, 1)))
    is_counted = ahead(is_target) & (ahead(segments) == segments) & (segments > 0)
    return NextTokens(ahead(tokens), is_counted.astype(jnp.float32))


def summed_nll(
    hidden: Hidden, kernel: Float[Array, "d v"], targets: NextTokens, *, chunk: int
) -> Float[Array, ""]:
    """Sum over target tokens of -log p(label), in nats, float32.

    Logits exist for `chunk` positions of each row at a time, forward and backward: the gradient
    with respect to `hidden` is made in the forward pass. Each row's targets are moved to its
    front first, so that chunks without any are skipped; rows stay where they are, and so does
    their sharding. `kernel` is frozen: no gradient flows to it.

    Args:
      hidden: Final hidden states.
      kernel: The output matrix.
      targets: From `next_tokens`.
      chunk: Positions of a row whose logits exist at once.
    """
    order = jnp.argsort(targets.weights == 0, axis=1, stable=True)
    padding = -hidden.shape[1] % min(chunk, hidden.shape[1])
    front = lambda x: jnp.pad(jnp.take_along_axis(x, order, axis=1), ((0, 0), (0, padding)))
    hidden = jnp.take_along_axis(hidden, order[:, :, None], axis=1)
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    chunks = hidden.shape[1] // min(chunk, hidden.shape[1] - padding)
    return _chunked_nll(
        _in_chunks(hidden, chunks),
        # Here and not in each chunk, or every chunk would gather it again.
        gather_weight("lm_head/kernel", jax.lax.stop_gradient(kernel)),
        _in_chunks(front(targets.labels), chunks),
        _in_chunks(front(targets.weights), chunks),
    )


def _in_chunks(x: Array, chunks: int) -> Array:
    """[b, t, ...] to [chunks, b, t / chunks, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)


@jax.custom_vjp
def _chunked_nll(hidden: Array, kernel: Array, labels: Array, weights: Array) -> Array:
    """The summed loss over chunks."""
    return _chunked_nll_forward(hidden, kernel, labels, weights)[0]


def _chunked_nll_forward(
    hidden: Array, kernel: Array, labels: Array, weights: Array
) -> tuple[Array, tuple[Array, ...]]:
    """The loss, and its gradient with respect to the hidden states as residual."""

    def one(total: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        nothing = (jnp.zeros((), jnp.float32), jnp.zeros_like(chunk[0]))
        compute = functools.partial(_nll_and_gradient, kernel=kernel)
        nll, gradient = jax.lax.cond(jnp.any(chunk[2] > 0), compute, lambda *_: nothing, *chunk)
        return total + nll, gradient

    total, gradient = jax.lax.scan(one, jnp.zeros((), jnp.float32), (hidden, labels, weights))
    return total, (gradient, kernel, labels, weights)


def _chunked_nll_backward(
    residuals: tuple[Array, ...], cotangent: Array
) -> tuple[Array, Array, None, Array]:
    """Scales the stored gradient; the frozen kernel's is never asked for."""
    gradient, kernel, _, weights = residuals
    return (
        gradient * cotangent.astype(gradient.dtype),
        jnp.zeros_like(kernel),
        None,
        jnp.zeros_like(weights),
    )


def _nll_and_gradient(
    hidden: Array, labels: Array, weights: Array, *, kernel: Array
) -> tuple[Array, Array]:
    """Loss and gradient of one chunk [b, c, d]; softmax in float32."""
    kernel = kernel.astype(hidden.dtype)
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    nll = jnp.sum((log_z - label_logits) * weights)
    shares = jnp.exp(logits - log_z[..., None])
    is_label = labels[..., None] == jnp.arange(kernel.shape[1])[None, None]
    errors = (shares - is_label.astype(shares.dtype)) * weights[..., None]
    return nll, jnp.matmul(errors.astype(hidden.dtype), kernel.T)


_chunked_nll.defvjp(_chunked_nll_forward, _chunked_nll_backward)
