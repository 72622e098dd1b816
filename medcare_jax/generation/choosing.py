"""Which token comes next: the likeliest, or a draw from the nucleus."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def choose(
    logits: Float[Array, "b v"],
    keys: Key[Array, " b"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
) -> Int[Array, " b"]:
    """The next token of each row: the likeliest at temperature 0, else a nucleus draw."""

    def greedy() -> Int[Array, " b"]:
        return logits.argmax(axis=-1).astype(jnp.int32)

    def draw() -> Int[Array, " b"]:
        nucleus = keep_nucleus(logits / temperature, top_p)
        return jax.vmap(jax.random.categorical)(keys, nucleus).astype(jnp.int32)

    # A branch, not a select: greedy decoding must not pay for sorting the vocabulary.
    return jax.lax.cond(temperature > 0, draw, greedy)


def keep_nucleus(logits: Float[Array, "b v"], top_p: Float[Array, ""]) -> Float[Array, "b v"]:
    """The logits with all but the nucleus at minus infinity.

    The nucleus is the fewest likeliest tokens whose probabilities sum to at least `top_p`; the
    likeliest token is always in it.

    References:
      Holtzman et al., `The Curious Case of Neural Text Degeneration
      <https://arxiv.org/abs/1904.09751>`_, 2020, section 3.1

    Examples:
      >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
      >>> jnp.isfinite(keep_nucleus(logits, jnp.float32(0.6))).tolist()
      [[True, True, False]]
    """
    descending = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(descending, axis=-1)
    sum_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    is_kept = sum_before < top_p
    threshold = jnp.where(is_kept, descending, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf)
