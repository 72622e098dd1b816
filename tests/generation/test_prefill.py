"""Prompts in a cache: the states without one, and only the prompts' own slots."""

import jax
import jax.numpy as jnp
import numpy as np

from medcare_jax.generation.prefill import prefill
from tests.helpers import outputs_of, random_inputs, random_params, tiny_decoder


def test_last_states_equal_those_without_a_cache():
    decoder, lengths = tiny_decoder("qwen3"), np.array([9, 1, 4])
    params, inputs = random_params(decoder), random_inputs(3, 9)
    compiled = jax.jit(prefill, static_argnums=0)  # eager, every operation compiles by itself
    last, cache = compiled(decoder, params, inputs.tokens, jnp.asarray(lengths))
    whole = outputs_of(decoder, params, inputs).hidden
    np.testing.assert_allclose(last, whole[np.arange(3), lengths - 1], atol=1e-5)
    assert cache.segments.tolist() == [[1] * n + [0] * (9 - n) for n in lengths]
    assert cache.keys.shape == cache.values.shape == (3, 3, 2, 9, 6)
