"""Rotary positions against transformers and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.models import rotary
from medcare_jax.models.families import RopeScaling, huggingface_config
from medcare_jax.models.rotary import make_rotations, rope_frequencies, rotate
from tests.helpers import TINY

LLAMA = dataclasses.replace(TINY["llama"], head_dim=64, rope_theta=500_000.0)
SCALINGS = {
    "default": None,
    "linear": RopeScaling("linear", factor=4.0),
    "llama3": RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_position_embeddings=8192),
}


@pytest.mark.torch
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_rotations_are_those_of_transformers(scaling):
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    settings = dataclasses.replace(LLAMA, rope_scaling=scaling, max_position_embeddings=65536)
    theirs = modeling_llama.LlamaRotaryEmbedding(LlamaConfig(**huggingface_config(settings)))
    frequencies = rope_frequencies(settings)
    np.testing.assert_allclose(frequencies, theirs.inv_freq.numpy(), rtol=1e-6)

    random = np.random.default_rng(0)
    q = random.standard_normal((2, 7, 4, 64)).astype(np.float32)
    positions = random.integers(0, 4096, (2, 7)).astype(np.int32)
    cos, sin = theirs(torch.tensor(q), torch.tensor(positions))
    expected, _ = modeling_llama.apply_rotary_pos_emb(
        torch.tensor(q), torch.tensor(q), cos, sin, unsqueeze_dim=2
    )
    # Float32 angles of up to 4096 radians are known to 2e-4 only, on either side.
    ours = rotate(jnp.asarray(q), make_rotations(jnp.asarray(positions), frequencies))
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=2e-3)
    small = rotate(jnp.asarray(q), make_rotations(jnp.asarray(positions % 8), frequencies))
    cos, sin = theirs(torch.tensor(q), torch.tensor(positions % 8))
    expected, _ = modeling_llama.apply_rotary_pos_emb(
        torch.tensor(q), torch.tensor(q), cos, sin, unsqueeze_dim=2
    )
    np.testing.assert_allclose(small, expected.numpy(), rtol=0, atol=5e-6)


def test_llama3_slows_long_wavelengths_and_keeps_short_ones():
    plain = rope_frequencies(dataclasses.replace(LLAMA, rope_scaling=None))
    scaled = rope_frequencies(dataclasses.replace(LLAMA, rope_scaling=SCALINGS["llama3"]))
    ratio = np.asarray(plain / scaled)
    wavelengths = 2 * np.pi / np.asarray(plain)
    np.testing.assert_allclose(ratio[wavelengths < 8192 / 4], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[wavelengths > 8192 / 1], 8.0, rtol=1e-6)
    between = ratio[(wavelengths > 8192 / 4) & (wavelengths < 8192)]
    assert len(between) > 0
    assert ((between > 1.0) & (between < 8.0)).all()


def test_rotation_turns_halves_and_keeps_dot_products_of_equal_distance():
    frequencies = rope_frequencies(TINY["qwen2"])
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 6))

    def score(i, j):
        at = lambda p: jnp.full((1, 1), p, jnp.int32)
        return float(
            jnp.sum(
                rotate(q, make_rotations(at(i), frequencies))
                * rotate(k, make_rotations(at(j), frequencies))
            )
        )

    assert score(9, 4) == pytest.approx(score(5, 0), abs=1e-5)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3
    unit = jnp.zeros((1, 1, 1, 6)).at[..., 0].set(1.0)  # pairs with dimension 3, not 1
    turned = rotate(unit, make_rotations(jnp.ones((1, 1), jnp.int32), frequencies))[0, 0, 0]
    np.testing.assert_allclose(turned, [np.cos(1), 0, 0, np.sin(1), 0, 0], atol=1e-6)


def test_rotation_is_in_float32_and_returned_in_the_input_dtype():
    q = jax.random.normal(jax.random.key(0), (1, 3, 2, 6), jnp.bfloat16)
    positions = jnp.array([[0, 500, 1001]], jnp.int32)
    frequencies = rope_frequencies(TINY["qwen2"])
    turned = rotate(q, make_rotations(positions, frequencies))
    assert turned.dtype == jnp.bfloat16
    wide = rotate(q.astype(jnp.float32), make_rotations(positions, frequencies))
    np.testing.assert_array_equal(turned, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_halves_swapped_by_a_matmul_are_those_swapped_by_slices(dtype, monkeypatch):
    """A TPU's form, run here, with its gradient; to the bit."""
    x, weights = jax.random.normal(jax.random.key(1), (2, 3, 5, 4, 6), dtype)
    positions = jnp.arange(15, dtype=jnp.int32).reshape(3, 5)
    rotations = make_rotations(positions, rope_frequencies(TINY["qwen2"]))
    turn = jax.value_and_grad(lambda x: jnp.sum(rotate(x, rotations) * weights))
    expected = turn(x)
    monkeypatch.setattr(rotary, "current_platform", lambda: "tpu")
    assert "dot_general" in str(jax.make_jaxpr(turn)(x))
    for ours, theirs in zip(turn(x), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
