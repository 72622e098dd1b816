"""Prompts to their key-value cache: the first half of generation and of option scoring."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from medcare_jax.models.attention import KVCache, make_cache
from medcare_jax.models.decoder import Decoder
from medcare_jax.settings import DTYPES
from medcare_jax.shapes import Params, Tokens


def prefill(
    decoder: Decoder, params: Params, tokens: Tokens, lengths: Int[Array, " b"]
) -> tuple[Float[Array, "b d"], KVCache]:
    """The state after each prompt's last token, and a cache of the prompts' width.

    Args:
      decoder: the model.
      params: its parameters.
      tokens: prompts padded on the right, int32.
      lengths: tokens of each prompt, at least 1.

    Returns:
      Hidden states after the final norm, and keys and values in the compute dtype; slots of
      padding count as empty.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    nothing = make_cache(decoder.settings, len(tokens), 0, DTYPES[decoder.compute.dtype])
    hidden, cache = decoder.apply({"params": params}, tokens, positions, segments, nothing)
    return jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0], cache
