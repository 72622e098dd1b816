"""Draws against the softmax that they come from, and the nucleus."""

import jax
import jax.numpy as jnp
import numpy as np

from medcare_jax.generation.choosing import choose, keep_nucleus


def test_draws_follow_the_softmax_at_its_temperature():
    draws, temperature = 4_000, 1.7
    logits = jnp.asarray(np.random.default_rng(4).normal(size=23), jnp.float32)
    keys = jax.random.split(jax.random.key(3), draws)
    rows = jnp.broadcast_to(logits, (draws, 23))
    drawn = choose(rows, keys, jnp.float32(temperature), jnp.float32(1.0))
    shares = np.bincount(np.asarray(drawn), minlength=23) / draws
    expected = np.asarray(jax.nn.softmax(logits / temperature))
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / draws)
    wrong = np.asarray(jax.nn.softmax(logits))
    assert np.abs(shares - wrong).max() > 4 * np.sqrt(0.25 / draws), "the bound can tell"


def test_the_nucleus_holds_just_enough():
    probabilities = jnp.array([[0.05, 0.4, 0.25, 0.3], [0.97, 0.01, 0.01, 0.01]])
    kept = jnp.isfinite(keep_nucleus(jnp.log(probabilities), jnp.float32(0.6)))
    assert kept.tolist() == [[False, True, False, True], [True, False, False, False]]
