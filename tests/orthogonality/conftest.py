"""Optax inside a suite of strict dtypes."""

import jax
import optax
import pytest


@pytest.fixture(scope="session")
def relaxed():
    """Wraps a transform of optax whose own arithmetic mixes dtypes, as Adam's step count does.

    Only what is wrapped is relaxed; this package's transforms stay under strict promotion.
    """

    def wrap(tx):
        tx = optax.with_extra_args_support(tx)

        def update_fn(updates, state, params=None, **extra_args):
            with jax.numpy_dtype_promotion("standard"):
                return tx.update(updates, state, params, **extra_args)

        return optax.GradientTransformationExtraArgs(tx.init, update_fn)

    return wrap
