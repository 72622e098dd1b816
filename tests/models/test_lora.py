"""Low-rank deltas against numpy in float64, and folds against the reference's merged weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax

from medcare_jax.models.lora import Factors, LoRA, fold_factors, low_rank_delta, uniform_fan_in


def random_arrays(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Float32 arrays of those shapes."""
    random = np.random.default_rng(0)
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("gated", [(), (0,), (1,), (0, 1, 2)])
def test_the_joined_product_is_the_sum_of_adapters(gated):
    adapters, exact = [], 0.0
    (x,) = random_arrays((2, 7, 20))
    for i, rank in enumerate((3, 5, 1)):
        lora_a, lora_b, gates = random_arrays((20, rank), (rank, 36), (2, 7, rank))
        adapters.append(Factors(lora_a, lora_b, gates if i in gated else None))
        factor = np.asarray(gates) if i in gated else 1.0
        exact += (np.asarray(x, np.float64) @ lora_a * factor) @ lora_b
    delta = low_rank_delta(x, adapters, scale=0.75)
    np.testing.assert_allclose(delta, 0.75 * exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_delta_is_computed_in_the_dtype_of_the_input(dtype):
    x, a, b = random_arrays((1, 4, 20), (20, 3), (3, 36))
    assert low_rank_delta(x.astype(dtype), [Factors(a, b)], scale=2.0).dtype == dtype


def test_a_new_adapter_is_float32_uniform_in_a_and_zero_in_b():
    factors = LoRA(rank=30).init(jax.random.key(0), jnp.ones((1, 1, 400), jnp.bfloat16), 7)
    lora_a, lora_b = factors["params"]["lora_a"], factors["params"]["lora_b"]
    assert lora_a.dtype == lora_b.dtype == jnp.float32
    np.testing.assert_array_equal(lora_b, np.zeros((30, 7)))
    limit = 400**-0.5
    assert 0.99 * limit < np.abs(lora_a).max() <= limit
    assert np.std(lora_a) == pytest.approx(limit / 3**0.5, rel=0.02)


def test_the_limits_follow_the_width_and_not_the_shape():
    sample = uniform_fan_in(25)(jax.random.key(0), (1000,))
    assert 0.19 < np.max(sample) <= 0.2
    assert -0.2 <= np.min(sample) < -0.19


@pytest.mark.parametrize(
    ("name", "scale", "atol"),
    [("orth_default", 2.0, 1e-6), ("orth_rslora_bias", 2 * 3**0.5, 2e-6)],
)
def test_folding_both_pairs_gives_the_references_merged_weight(shared, name, scale, atol):
    arrays = safetensors.flax.load_file(shared / "golden" / "modules" / f"{name}.safetensors")
    kernel = arrays["param.weight"].T
    for pair in ("base", "orth"):
        lora_a, lora_b = (arrays[f"param.{pair}.lora_{which}.weight"].T for which in "AB")
        kernel = fold_factors(kernel, lora_a, lora_b, scale=scale)
    np.testing.assert_allclose(kernel.T, arrays["merged_weight"], rtol=0, atol=atol)
    y = arrays["x"] @ kernel
    if "param.bias" in arrays:
        y = y + arrays["param.bias"][None, None]
    np.testing.assert_allclose(y, arrays["y_merged"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(y, arrays["y"], rtol=0, atol=2e-5)


def test_folding_into_bfloat16_rounds_once(shared):
    """The correctly rounded float64 sum; the reference's own merge rounds the delta as well."""
    arrays = safetensors.flax.load_file(shared / "golden" / "modules" / "orth_bf16.safetensors")
    kernel = arrays["param.weight"].T
    lora_a, lora_b = (arrays[f"param.base.lora_{which}.weight"].T for which in "AB")
    folded = fold_factors(kernel, lora_a, lora_b, scale=2.0)
    exact = np.asarray(kernel, np.float64)
    exact = exact + 2.0 * np.asarray(lora_a, np.float64) @ np.asarray(lora_b, np.float64)
    assert folded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(folded, exact.astype(jnp.bfloat16))


def test_stacked_kernels_are_folded_layer_by_layer():
    kernel, lora_a, lora_b = random_arrays((3, 20, 36), (3, 20, 5), (3, 5, 36))
    folded = fold_factors(kernel, lora_a, lora_b, scale=0.5)
    for layer, parts in zip(folded, zip(kernel, lora_a, lora_b, strict=True), strict=True):
        np.testing.assert_array_equal(layer, fold_factors(*parts, scale=0.5))
