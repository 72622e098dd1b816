"""The arithmetic that a step of LoRA cannot do without: what speed is measured against."""

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
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), tokens, tokens, tokens)["params"]
    trees = split(shapes)
    kernels = [leaf for path, leaf in flatten(trees.pop(BASE)).items() if path.endswith("kernel")]
    matrices = count(kernels)
    s = decoder.settings
    if s.tie_word_embeddings:
        matrices += s.vocab_size * s.hidden_size
    attention = 2 * length * s.num_heads * s.head_dim * s.num_layers
    return float(4 * matrices + 3 * attention + 3 * 2 * count(trees))
