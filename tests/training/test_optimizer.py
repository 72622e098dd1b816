"""The schedule against transformers', the chain against one written out, the projection's place."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medcare_jax.orthogonality import (
    extend_basis,
    max_leak,
    orthonormal_basis,
    project_tree,
    project_updates,
)
from medcare_jax.settings import ConstraintSettings, StageSettings
from medcare_jax.training.optimizer import make_optimizer, make_schedule

STAGE = StageSettings(
    learning_rate=1e-2, warmup_share=0.0, weight_decay=0.3, adam_b1=0.8, adam_b2=0.95
)

PROJECTION = ConstraintSettings(basis="span")


@pytest.mark.torch
@pytest.mark.parametrize(("total", "share"), [(1, 0.0), (9, 0.0), (40, 0.03), (33, 0.25), (7, 1.0)])
def test_the_schedule_is_that_of_transformers_at_every_step(total, share):
    import torch
    import transformers

    peak = 3e-4
    schedule = make_schedule(StageSettings(learning_rate=peak, warmup_share=share), total)
    inner = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    twin = transformers.get_cosine_schedule_with_warmup(inner, math.ceil(share * total), total)
    for step in range(total + 1):
        np.testing.assert_allclose(schedule(step), twin.get_last_lr()[0], rtol=2e-6, atol=1e-11)
        inner.step()
        twin.step()


def test_a_stage_of_one_step_learns_at_the_peak():
    schedule = make_schedule(StageSettings(learning_rate=3e-4, warmup_share=0.5), 1)
    np.testing.assert_allclose(schedule(0), 3e-4, rtol=1e-6)


@pytest.fixture(autouse=True)
def _relaxed():
    """Adam's step count mixes dtypes inside optax."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def lora(seed, size=1.0):
    keys = jax.random.split(jax.random.key(seed))
    lora_a, lora_b = jax.random.normal(keys[0], (12, 3)), jax.random.normal(keys[1], (3, 5))
    return {"up_proj": {"lora_a": size * lora_a, "lora_b": size * lora_b}}


@pytest.fixture(scope="module")
def basis():
    return extend_basis(orthonormal_basis(lora(0)), lora(1))


def after_steps(chain, params, basis, steps=6):
    """The parameters after updates by random gradients, of which the first is clipped."""
    state = chain.init(params)
    for seed in range(steps):
        gradient = lora(seed + 10, size=20 / (1 + 50 * seed))
        updates, state = chain.update(gradient, state, params, basis=basis)
        params = optax.apply_updates(params, updates)
    return params


def wrongly_ordered(stage):
    """Gradients projected, then scaled by Adam and decayed."""
    return optax.with_extra_args_support(
        optax.chain(project_updates(), make_optimizer(stage, 50, constraint=None))
    )


def test_the_projection_comes_last(basis):
    start = project_tree(lora(1), basis)
    right = after_steps(make_optimizer(STAGE, 50, constraint=PROJECTION), start, basis)
    wrong = after_steps(wrongly_ordered(STAGE), start, basis)
    assert max_leak(right, basis) < 1e-6
    assert max_leak(wrong, basis) > 1e-3
    assert np.abs(right["up_proj"]["lora_a"] - start["up_proj"]["lora_a"]).max() > 1e-2


def test_weight_decay_does_not_come_after_the_projection(basis):
    outside = lora(1)  # not in the complement, so that its decay is not either
    zeros = jax.tree.map(jnp.zeros_like, outside)
    updates = []
    for chain in (
        make_optimizer(STAGE, 50, constraint=PROJECTION),
        wrongly_ordered(STAGE),
    ):
        updates.append(chain.update(zeros, chain.init(outside), outside, basis=basis)[0])
    assert np.abs(updates[0]["up_proj"]["lora_a"]).max() > 1e-4
    assert max_leak(updates[0], basis) < 1e-6
    assert max_leak(updates[1], basis) > 0.1


def test_a_basis_is_needed_exactly_with_the_projection(basis):
    params = lora(1)
    projected = make_optimizer(STAGE, 50, constraint=PROJECTION)
    with pytest.raises(TypeError, match="basis"):
        projected.update(params, projected.init(params), params)
    plain = make_optimizer(STAGE, 50, constraint=None)
    without, _ = plain.update(params, plain.init(params), params)
    with_one, _ = plain.update(params, plain.init(params), params, basis=basis)
    jax.tree.map(np.testing.assert_array_equal, without, with_one)


def test_clipping_and_betas_are_those_of_the_settings(basis):
    adamw = optax.adamw(make_schedule(STAGE, 50), b1=0.8, b2=0.95, weight_decay=0.3)
    by_hand = {0.0: [adamw], 0.7: [optax.clip_by_global_norm(0.7), adamw]}
    results = []
    for clip_norm, links in by_hand.items():
        stage = dataclasses.replace(STAGE, clip_norm=clip_norm)
        found = after_steps(make_optimizer(stage, 50, constraint=None), lora(1), basis)
        chain = optax.with_extra_args_support(optax.chain(*links))
        jax.tree.map(np.testing.assert_array_equal, found, after_steps(chain, lora(1), basis))
        results.append(found["up_proj"]["lora_a"])
    assert np.abs(results[0] - results[1]).max() > 1e-3


def test_a_soft_projection_leaves_a_share(basis):
    params, soft = lora(1), ConstraintSettings(strength=0.5)
    updates = {}
    for name, constraint in (("none", None), ("hard", PROJECTION), ("soft", soft)):
        chain = make_optimizer(STAGE, 50, constraint=constraint)
        updates[name], _ = chain.update(lora(10), chain.init(params), params, basis=basis)
    middle = jax.tree.map(lambda free, hard: (free + hard) / 2, updates["none"], updates["hard"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7), updates["soft"], middle)


def test_retraction_brings_back_what_began_outside(basis):
    retracting = make_optimizer(STAGE, 50, constraint=ConstraintSettings(retract_every=3))
    plain = make_optimizer(STAGE, 50, constraint=PROJECTION)
    assert max_leak(after_steps(plain, lora(1), basis), basis) > 0.1
    assert max_leak(after_steps(retracting, lora(1), basis, steps=3), basis) < 1e-6
