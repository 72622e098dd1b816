"""Parts of the job that can be had without a run; the whole is in test_end_to_end.py."""

import jax
import jax.numpy as jnp
import pytest

from medcare_jax.run.job import ConstraintError, check_penalty


def lora(key, value=1.0):
    return {"up_proj": {"lora_a": value * jax.random.normal(jax.random.key(key), (2, 7, 3))}}


def test_a_penalty_that_pulls_is_let_through():
    check_penalty(lora(0), lora(1))


def test_a_penalty_without_gradient_is_an_error():
    with pytest.raises(ConstraintError, match="expected a norm above 0"):
        check_penalty(jax.tree.map(jnp.zeros_like, lora(0)), lora(1))
