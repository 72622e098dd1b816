"""Real models' `config.json`, as transformers 4 and 5 write it, to settings and back."""

import dataclasses

import jax
import pytest

from medcare_jax.models.families import (
    DecoderSettings,
    RopeScaling,
    UnsupportedModelError,
    check_model,
    decoder_settings,
    huggingface_config,
)
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import ShardingError, make_mesh
from tests.helpers import TINY

LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def qwen1_5(hidden, ffn, layers, heads, vocab, *, theta=1_000_000.0):
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": theta,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.37.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab,
    }


QWEN2_5_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}

QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}

LLAMA3_1_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": LLAMA3_ROPE,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}

SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}


def settings_of(family, vocab, hidden, ffn, layers, heads, kv_heads, head_dim, **others):
    """Expected settings; what is not named is Qwen1.5's."""
    return DecoderSettings(
        family=family,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        use_qkv_bias=family == "qwen2",
        use_qk_norm=family == "qwen3",
        **{
            "rope_theta": 1e6,
            "rope_scaling": None,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "max_position_embeddings": 32768,
        }
        | others,
    )


MODELS = {
    "Qwen1.5-1.8B-Chat": (
        qwen1_5(2048, 5504, 24, 16, 151936),
        settings_of("qwen2", 151936, 2048, 5504, 24, 16, 16, 128),
    ),
    "Qwen1.5-7B-Chat": (
        qwen1_5(4096, 11008, 32, 32, 151936),
        settings_of("qwen2", 151936, 4096, 11008, 32, 32, 32, 128),
    ),
    "Qwen1.5-14B-Chat": (
        qwen1_5(5120, 13696, 40, 40, 152064),
        settings_of("qwen2", 152064, 5120, 13696, 40, 40, 40, 128),
    ),
    "Qwen2.5-7B": (QWEN2_5_7B, settings_of("qwen2", 152064, 3584, 18944, 28, 28, 4, 128)),
    "Qwen3-8B": (
        QWEN3_8B,
        settings_of("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, max_position_embeddings=40960),
    ),
    "Llama-3.1-8B": (
        LLAMA3_1_8B,
        settings_of(
            "llama", 128256, 4096, 14336, 32, 32, 8, 128,
            rope_theta=5e5,
            rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
            rms_norm_eps=1e-5,
            max_position_embeddings=131072,
        ),
    ),
    "SmolLM2-135M": (
        SMOLLM2_135M,
        settings_of(
            "llama", 49152, 576, 1536, 30, 9, 3, 64,
            rope_theta=1e5,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            max_position_embeddings=8192,
        ),
    ),
}  # fmt: skip


def in_transformers_5(config):
    """The same file as transformers 5 writes it: rope in one dict, a kind for every layer."""
    config = dict(config)
    theta, scaling = config.pop("rope_theta"), config.pop("rope_scaling", None)
    config["rope_parameters"] = {"rope_type": "default"} | (scaling or {}) | {"rope_theta": theta}
    config["dtype"] = config.pop("torch_dtype", "bfloat16")
    if config["model_type"].startswith("qwen"):
        config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
        config["sliding_window"] = None
    return config


@pytest.mark.parametrize("layout", ["transformers 4", "transformers 5"])
@pytest.mark.parametrize(("config", "expected"), MODELS.values(), ids=MODELS)
def test_a_real_config_is_read_whole_and_survives_the_way_back(config, expected, layout):
    config = in_transformers_5(config) if layout == "transformers 5" else config
    settings = decoder_settings(config)
    assert settings == expected
    assert decoder_settings(huggingface_config(settings)) == settings


@pytest.mark.parametrize("settings", TINY.values(), ids=TINY)
def test_odd_settings_survive_too(settings):
    assert decoder_settings(huggingface_config(settings)) == settings


@pytest.mark.parametrize("settings", TINY.values(), ids=TINY)
def test_without_one_of_the_rope_layouts_the_written_config_still_says_all(settings):
    """transformers 4 knows no rope_parameters, transformers 5 writes no rope_theta."""
    config = huggingface_config(settings)
    old = {name: value for name, value in config.items() if name != "rope_parameters"}
    new = {name: value for name, value in config.items() if not name.startswith("rope_")}
    new["rope_parameters"] = config["rope_parameters"]
    assert decoder_settings(old) == decoder_settings(new) == settings


@pytest.mark.torch
@pytest.mark.parametrize("settings", TINY.values(), ids=TINY)
def test_transformers_understands_the_written_config_as_we_do(settings, tmp_path):
    import json

    import transformers

    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(settings)))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert decoder_settings(theirs.to_dict()) == settings


def test_fewer_fields_fall_back_as_in_transformers():
    config = {k: v for k, v in QWEN2_5_7B.items() if k not in ("num_key_value_heads", "rope_theta")}
    settings = decoder_settings(config)
    assert (settings.num_kv_heads, settings.rope_theta) == (28, 10_000.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported are qwen2"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn"}},
            "rope scaling 'yarn'",
        ),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                "rope_scaling": {"type": "linear", "factor": 4.0},
            },
            "ask for different scalings, 'default' and 'linear'; take one away",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
            "rope scaling 'longrope' is not supported; supported are default, linear, llama3",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            r"partial_rotary_factor = 0.5 \(supported: 1.0\)",
        ),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25"),
        ({"use_sliding_window": True}, r"use_sliding_window = True \(supported: False\)"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types with sliding_attention",
        ),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' .supported: 'silu'."),
        ({"pretraining_tp": 2}, "pretraining_tp = 2"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config = "),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(UnsupportedModelError, match=message):
        decoder_settings(QWEN2_5_7B | change)


def test_all_refusals_come_at_once():
    with pytest.raises(UnsupportedModelError, match="hidden_act = 'gelu'.*; mlp_bias = True"):
        decoder_settings(LLAMA3_1_8B | {"hidden_act": "gelu", "mlp_bias": True})


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
        "max_position_embeddings",
        "head_dim",
    ],
)
def test_a_missing_field_is_named(field):
    config = {name: value for name, value in QWEN3_8B.items() if name != field}
    with pytest.raises(ValueError, match=f"there is no field '{field}'"):
        decoder_settings(config)


def test_a_scaling_without_its_numbers_is_refused():
    rope = {name: LLAMA3_ROPE[name] for name in ("rope_type", "factor", "high_freq_factor")}
    missing = "'llama3' lacks low_freq_factor, original_max_position_embeddings"
    with pytest.raises(ValueError, match=missing):
        decoder_settings(LLAMA3_1_8B | {"rope_scaling": rope})


def test_sizes_that_cannot_be_a_decoder_are_refused():
    with pytest.raises(ValueError, match="num_attention_heads 4 is not a multiple of .* 3"):
        dataclasses.replace(TINY["qwen2"], num_kv_heads=3)
    with pytest.raises(ValueError, match="head_dim 5 is not an even number"):
        dataclasses.replace(TINY["qwen2"], head_dim=5)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ((1, 1, 4), {"num_key_value_heads = 2", "vocab_size = 98"}),
        (
            (1, 8, 1),
            {"hidden_size = 20", "intermediate_size = 36", "num_key_value_heads x head_dim = 12"},
        ),
        ((4, 2, 1), set()),
        ((4, 1, 2), set()),
    ],
)
def test_a_mesh_that_does_not_fit_a_model_is_refused_by_every_size(sizes, named):
    mesh = make_mesh(MeshSettings(*sizes), jax.devices()[: sizes[0] * sizes[1] * sizes[2]])
    try:
        check_model(mesh, TINY["qwen2"])
        found = set()
    except ShardingError as error:
        found = {part.split(" is not")[0] for part in str(error).split("; ")[:-1]}
    assert found == named
