"""Every parameter of the tiny decoders, spelled out."""

import jax.numpy as jnp
import pytest

from medcare_jax import params as trees
from medcare_jax.models.aggregators import (
    DA_ATTENTION_COMPONENTS,
    DA_COMPONENTS,
    MKA_COMPONENTS,
    NO_ADAPTERS,
)
from tests.helpers import abstract_params, tiny_decoder


def shapes_of(decoder) -> dict[str, tuple[int, ...]]:
    """Every leaf's shape by path; all are float32."""
    flat = trees.flatten(abstract_params(decoder))
    assert {leaf.dtype for leaf in flat.values()} == {jnp.dtype("float32")}
    return {path: leaf.shape for path, leaf in flat.items()}


BASE_TREE = {
    "lm_head/kernel": (20, 98),
    "model/embed_tokens/embedding": (98, 20),
    "model/layers/input_layernorm/scale": (3, 20),
    "model/layers/mlp/down_proj/kernel": (3, 36, 20),
    "model/layers/mlp/gate_proj/kernel": (3, 20, 36),
    "model/layers/mlp/up_proj/kernel": (3, 20, 36),
    "model/layers/post_attention_layernorm/scale": (3, 20),
    "model/layers/self_attn/k_proj/bias": (3, 12),
    "model/layers/self_attn/k_proj/kernel": (3, 20, 12),
    "model/layers/self_attn/o_proj/kernel": (3, 24, 20),
    "model/layers/self_attn/q_proj/bias": (3, 24),
    "model/layers/self_attn/q_proj/kernel": (3, 20, 24),
    "model/layers/self_attn/v_proj/bias": (3, 12),
    "model/layers/self_attn/v_proj/kernel": (3, 20, 12),
    "model/norm/scale": (20,),
}
BIASES = {path for path in BASE_TREE if path.endswith("bias")}
MKA_TREE = {
    "model/layers/mlp/down_proj/knowledge/lora_a": (3, 36, 10),
    "model/layers/mlp/down_proj/knowledge/lora_b": (3, 10, 20),
    "model/layers/mlp/down_proj/noise/lora_a": (3, 36, 35),
    "model/layers/mlp/down_proj/noise/lora_b": (3, 35, 20),
    "model/layers/mlp/down_proj/noise/router_bias": (3, 7),
    "model/layers/mlp/down_proj/noise/router_kernel": (3, 36, 7),
    "model/layers/mlp/gate_proj/knowledge/lora_a": (3, 20, 10),
    "model/layers/mlp/gate_proj/knowledge/lora_b": (3, 10, 36),
    "model/layers/mlp/gate_proj/noise/lora_a": (3, 20, 35),
    "model/layers/mlp/gate_proj/noise/lora_b": (3, 35, 36),
    "model/layers/mlp/gate_proj/noise/router_bias": (3, 7),
    "model/layers/mlp/gate_proj/noise/router_kernel": (3, 20, 7),
    "model/layers/mlp/up_proj/knowledge/lora_a": (3, 20, 10),
    "model/layers/mlp/up_proj/knowledge/lora_b": (3, 10, 36),
    "model/layers/mlp/up_proj/noise/lora_a": (3, 20, 35),
    "model/layers/mlp/up_proj/noise/lora_b": (3, 35, 36),
    "model/layers/mlp/up_proj/noise/router_bias": (3, 7),
    "model/layers/mlp/up_proj/noise/router_kernel": (3, 20, 7),
    "model/layers/self_attn/k_proj/knowledge/lora_a": (3, 20, 5),
    "model/layers/self_attn/k_proj/knowledge/lora_b": (3, 5, 12),
    "model/layers/self_attn/o_proj/knowledge/lora_a": (3, 24, 5),
    "model/layers/self_attn/o_proj/knowledge/lora_b": (3, 5, 20),
    "model/layers/self_attn/q_proj/knowledge/lora_a": (3, 20, 5),
    "model/layers/self_attn/q_proj/knowledge/lora_b": (3, 5, 24),
    "model/layers/self_attn/v_proj/knowledge/lora_a": (3, 20, 5),
    "model/layers/self_attn/v_proj/knowledge/lora_b": (3, 5, 12),
}
DA_TREE = {
    "model/layers/mlp/down_proj/alignment/lora_a": (3, 36, 10),
    "model/layers/mlp/down_proj/alignment/lora_b": (3, 10, 20),
    "model/layers/mlp/down_proj/knowledge/lora_a": (3, 36, 10),
    "model/layers/mlp/down_proj/knowledge/lora_b": (3, 10, 20),
    "model/layers/mlp/gate_proj/alignment/lora_a": (3, 20, 10),
    "model/layers/mlp/gate_proj/alignment/lora_b": (3, 10, 36),
    "model/layers/mlp/gate_proj/knowledge/lora_a": (3, 20, 10),
    "model/layers/mlp/gate_proj/knowledge/lora_b": (3, 10, 36),
    "model/layers/mlp/up_proj/alignment/lora_a": (3, 20, 10),
    "model/layers/mlp/up_proj/alignment/lora_b": (3, 10, 36),
    "model/layers/mlp/up_proj/knowledge/lora_a": (3, 20, 10),
    "model/layers/mlp/up_proj/knowledge/lora_b": (3, 10, 36),
}
# Two ranks wide as elsewhere: the reference halves r here, which doubles the scale unnoticed.
ATTENTION_ALIGNMENT_TREE = {
    "model/layers/self_attn/k_proj/alignment/lora_a": (3, 20, 10),
    "model/layers/self_attn/k_proj/alignment/lora_b": (3, 10, 12),
    "model/layers/self_attn/o_proj/alignment/lora_a": (3, 24, 10),
    "model/layers/self_attn/o_proj/alignment/lora_b": (3, 10, 20),
    "model/layers/self_attn/q_proj/alignment/lora_a": (3, 20, 10),
    "model/layers/self_attn/q_proj/alignment/lora_b": (3, 10, 24),
    "model/layers/self_attn/v_proj/alignment/lora_a": (3, 20, 10),
    "model/layers/self_attn/v_proj/alignment/lora_b": (3, 10, 12),
}


@pytest.mark.parametrize(
    ("components", "adapters"),
    [
        (NO_ADAPTERS, {}),
        (MKA_COMPONENTS, MKA_TREE),
        (DA_COMPONENTS, DA_TREE),
        (DA_ATTENTION_COMPONENTS, DA_TREE | ATTENTION_ALIGNMENT_TREE),
    ],
    ids=["base", "mka", "da", "da with attention"],
)
def test_the_whole_tree(components, adapters):
    assert shapes_of(tiny_decoder("qwen2", components)) == BASE_TREE | adapters


def test_qwen3_has_head_norms_in_place_of_biases():
    norms = {f"model/layers/self_attn/{name}_norm/scale": (3, 6) for name in "qk"}
    expected = {path: shape for path, shape in BASE_TREE.items() if path not in BIASES} | norms
    assert shapes_of(tiny_decoder("qwen3", NO_ADAPTERS)) == expected


def test_a_tied_llama_has_no_head_and_no_biases():
    absent = BIASES | {"lm_head/kernel"}
    expected = {path: shape for path, shape in BASE_TREE.items() if path not in absent}
    assert shapes_of(tiny_decoder("llama", NO_ADAPTERS)) == expected
