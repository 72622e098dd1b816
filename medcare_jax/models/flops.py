"""Arithmetic that a step or a continuation cannot do without: what speed is measured against."""

import jax
import jax.numpy as jnp

from medcare_jax.models.decoder import Decoder
from medcare_jax.params import BASE, count, flatten, split


def useful_flops(decoder: Decoder, length: int) -> float:
    """4 N + 3 (causal attention) + 3 (adapters), forward FLOPs of each in the brackets.

    N counts the base's matrices, output matrix included and embedding not. A frozen base needs no
    weight gradients, so 4 N is its floor and not 6 N; recomputed activations do not count.

    Args:
      decoder: With the adapters that learn.
      length: Tokens of a sequence.
    """
    layers, output, adapters = _matrices(decoder)
    s = decoder.settings
    attention = 2 * length * s.num_heads * s.head_dim * s.num_layers
    return float(4 * (layers + output) + 3 * attention + 3 * 2 * adapters)


def continuation_flops(decoder: Decoder, prompt: int, new: int) -> float:
    """Forward FLOPs of `new` tokens after a prompt, with a cache of what was read before.

    All tokens but the last go through the layers and attend to those before them; the output
    matrix is needed for the new ones alone.

    Args:
      decoder: The model with its adapters.
      prompt: Tokens of the prompt.
      new: Tokens made.
    """
    layers, output, adapters = _matrices(decoder)
    read = prompt + new - 1
    s = decoder.settings
    attention = 4 * s.num_heads * s.head_dim * s.num_layers * read * (read + 1) / 2
    return float(2 * (layers + adapters) * read + 2 * output * new + attention)


def _matrices(decoder: Decoder) -> tuple[int, int, int]:
    """Weights that a token is multiplied by: in the base's layers, in its output, in adapters."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), tokens, tokens, tokens)["params"]
    trees = split(shapes)
    kernels = [leaf for path, leaf in flatten(trees.pop(BASE)).items() if path.endswith("kernel")]
    s = decoder.settings
    output = s.vocab_size * s.hidden_size
    layers = count(kernels) - (0 if s.tie_word_embeddings else output)
    return layers, output, count(trees)
