"""Prompts into a fresh key-value cache: the first half of generation and of option scoring."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from medcare_jax.models.attention import KVCache, make_cache
from medcare_jax.models.decoder import Decoder
from medcare_jax.settings import DTYPES
from medcare_jax.shapes import Params, Tokens


def prefill(
    decoder: Decoder, params: Params, tokens: Tokens, lengths: Int[Array, " b"], *, num_more: int
) -> tuple[Float[Array, "b d"], KVCache]:
    """The state after each prompt's last token, and a cache with room for `num_more` tokens.

    Args:
      decoder: the model.
      params: its parameters.
      tokens: prompts padded on the right, int32.
      lengths: tokens of each prompt, at least 1.
      num_more: slots to keep free behind the widest prompt.

    Returns:
      Hidden states after the final norm, and keys and values in the compute dtype; slots of
      padding count as empty.
    """
    batch, width = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    dtype = DTYPES[decoder.compute.dtype]
    cache = make_cache(decoder.settings, batch, width + num_more, dtype)
    hidden, cache = decoder.apply({"params": params}, tokens, positions, segments, cache)
    return jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0], cache
