"""Folding: the folded model is the adapted model, rounded once."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from medcare_jax import params as trees
from medcare_jax.models.aggregators import DA_ATTENTION_COMPONENTS, NO_ADAPTERS, Components
from medcare_jax.models.folding import FoldingError, fold, rounded_away
from medcare_jax.params import ALIGNMENT, KNOWLEDGE
from medcare_jax.settings import AdapterSettings
from tests.helpers import (
    TINY_ADAPTERS,
    outputs_of,
    random_inputs,
    random_params,
    tiny_decoder,
)

KNOWLEDGE_ONLY = Components(attention=(KNOWLEDGE,), ffn=(KNOWLEDGE,))


@pytest.mark.parametrize(
    "components", [KNOWLEDGE_ONLY, DA_ATTENTION_COMPONENTS], ids=["knowledge", "both"]
)
def test_the_folded_model_gives_the_same_logits(components: Components) -> None:
    decoder, plain = tiny_decoder("qwen2", components), tiny_decoder("qwen2", NO_ADAPTERS)
    params, inputs = random_params(decoder), random_inputs()
    folded = fold(params, TINY_ADAPTERS)
    assert trees.split(folded).keys() == {"base"}
    expected = outputs_of(decoder, params, inputs).logits
    base = trees.split(params)["base"]
    np.testing.assert_allclose(outputs_of(plain, folded, inputs).logits, expected, atol=1e-4)
    assert np.abs(outputs_of(plain, base, inputs).logits - expected).max() > 0.1


@pytest.mark.parametrize("target", [None, jnp.float32, jnp.float16])
def test_rounded_once(target: jnp.dtype | None) -> None:
    """Equal to float64 arithmetic rounded once: never first to bfloat16, then to another dtype."""
    random = np.random.default_rng(0)
    kernel = random.standard_normal((2, 7, 9)).astype(ml_dtypes.bfloat16)
    tree = {
        name: {
            "lora_a": jnp.asarray(random.standard_normal((2, 7, rank)), jnp.float32),
            "lora_b": jnp.asarray(random.standard_normal((2, rank, 9)), jnp.float32),
        }
        for name, rank in ((KNOWLEDGE, 3), (ALIGNMENT, 4))
    }
    found = fold({"up": {"kernel": jnp.asarray(kernel), **tree}}, TINY_ADAPTERS, dtype=target)
    exact = kernel.astype(np.float64)
    for pair in tree.values():
        delta = np.asarray(pair["lora_a"], np.float64) @ np.asarray(pair["lora_b"], np.float64)
        exact = exact + TINY_ADAPTERS.scale * delta
    values = np.asarray(found["up"]["kernel"])
    assert values.dtype == np.dtype(target or jnp.bfloat16)
    error = np.abs(values.astype(np.float64) - exact)
    assert (error <= 0.5001 * np.spacing(np.abs(values)).astype(np.float64) + 1e-5).all()


def test_what_rounding_takes_of_a_small_delta_is_told():
    random = np.random.default_rng(0)
    kernel = jnp.asarray(random.standard_normal((2, 48, 40)), jnp.bfloat16)
    pair = {
        "lora_a": jnp.asarray(random.standard_normal((2, 48, 4)), jnp.float32),
        "lora_b": jnp.asarray(random.standard_normal((2, 4, 40)), jnp.float32),
    }
    adapters, lost = AdapterSettings(rank=4, alpha=4.0), {}
    for size in (1e-4, 1e-2):
        small = {"lora_a": pair["lora_a"], "lora_b": size * pair["lora_b"]}
        params = {"up": {"kernel": kernel, KNOWLEDGE: small}}
        lost[size] = rounded_away(params, fold(params, adapters), adapters)
        delta = np.asarray(small["lora_a"], np.float64) @ np.asarray(small["lora_b"], np.float64)
        base = np.asarray(kernel, np.float64)
        off = np.asarray(fold(params, adapters)["up"]["kernel"], np.float64) - base - delta
        expected = np.linalg.norm(off) / np.linalg.norm(delta)
        np.testing.assert_allclose(lost[size], expected, rtol=1e-4)
        exact = {"up": {"kernel": kernel.astype(jnp.float32), KNOWLEDGE: small}}
        assert rounded_away(exact, fold(exact, adapters), adapters) < 1e-3
    assert lost[1e-4] > 0.5 > 0.1 > lost[1e-2]


def test_untouched_leaves_are_the_same_arrays() -> None:
    params = random_params(tiny_decoder("qwen2", DA_ATTENTION_COMPONENTS))
    folded = fold(params, TINY_ADAPTERS)
    assert folded["model"]["norm"]["scale"] is params["model"]["norm"]["scale"]
    assert folded["lm_head"]["kernel"] is params["lm_head"]["kernel"]


def test_sharded_kernels_stay_where_they_are() -> None:
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x", "y"))
    kernel = jax.device_put(jnp.ones((3, 4, 8)), place)
    pair = {"lora_a": jnp.ones((3, 4, 2)), "lora_b": jnp.ones((3, 2, 8))}
    folded = fold({"up": {"kernel": kernel, KNOWLEDGE: pair}}, TINY_ADAPTERS)["up"]["kernel"]
    assert folded.sharding == place
    np.testing.assert_allclose(folded, 1 + 2 * TINY_ADAPTERS.scale, rtol=1e-6)


def test_a_mixture_is_refused() -> None:
    with pytest.raises(FoldingError, match="a mixture cannot be folded"):
        fold(random_params(tiny_decoder("llama")), TINY_ADAPTERS)


def test_an_adapter_without_kernel_is_refused() -> None:
    pair = {"lora_a": jnp.ones((1, 2, 3)), "lora_b": jnp.ones((1, 3, 2))}
    with pytest.raises(FoldingError, match="without a kernel to fold into: up"):
        fold({"up": {ALIGNMENT: pair}}, TINY_ADAPTERS)
