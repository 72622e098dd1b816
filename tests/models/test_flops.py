"""Useful work against sums written out, and the published sizes of the paper's bases."""

import pytest

from medcare_jax.models.aggregators import DA_COMPONENTS, MKA_COMPONENTS, NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import decoder_settings
from medcare_jax.models.flops import continuation_flops, useful_flops
from medcare_jax.planning.bases import base_shape
from medcare_jax.settings import AdapterSettings, BaseSettings
from tests.helpers import FLOAT32, TINY

SEVEN_BILLION = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32_768,
}


def test_seven_billion_by_hand():
    decoder = Decoder(decoder_settings(SEVEN_BILLION), AdapterSettings(), MKA_COMPONENTS, FLOAT32)
    d, f, v, layers = 4096, 11_008, 151_936, 32
    base = layers * (4 * d * d + 3 * d * f) + d * v
    attention = layers * 4 * (3072 / 2) * d
    pairs = 4 * 16 * 2 * d + 3 * (32 + 128) * (d + f) + 8 * (2 * d + f) + 3 * 8
    expected = 4 * base + 3 * attention + 6 * layers * pairs
    assert useful_flops(decoder, 3072) == pytest.approx(expected, rel=1e-9)


def test_a_tied_output_matrix_is_multiplied_too():
    untied, tied = (
        Decoder(
            decoder_settings(SEVEN_BILLION | {"tie_word_embeddings": is_tied}),
            AdapterSettings(),
            MKA_COMPONENTS,
            FLOAT32,
        )
        for is_tied in (False, True)
    )
    assert useful_flops(tied, 64) == useful_flops(untied, 64)


def test_the_papers_bases_have_the_published_sizes():
    sizes = {"1.8B": 1.53e9, "7B": 7.10e9, "14B": 13.39e9}
    for name, size in sizes.items():
        shape, source = base_shape(BaseSettings(path=f"nowhere/Qwen1.5-{name}-Chat"))
        plain = Decoder(shape, AdapterSettings(), NO_ADAPTERS, FLOAT32)
        assert abs(useful_flops(plain, 0) / (4 * size) - 1) < 0.005
        assert "built-in shape" in source


def test_grouped_keys_and_each_stage_by_hand():
    s, length = TINY["qwen2"], 64
    adapters = AdapterSettings(rank=1, shared_experts=1, experts=2, experts_per_token=1)
    attention = 2 * length * s.num_heads * s.head_dim * s.num_layers
    d, f, q, kv = s.hidden_size, s.intermediate_size, 24, 12
    base = s.num_layers * (2 * d * (q + kv) + 3 * d * f) + d * s.vocab_size
    knowledge = 2 * ((d + q) + 2 * (d + kv) + (q + d))
    ranks = 2 * 3 * 3 * (d + f)
    routers = 2 * 2 * (2 * d + f + 3)
    mka, da = (
        useful_flops(Decoder(s, adapters, components, FLOAT32), length)
        for components in (MKA_COMPONENTS, DA_COMPONENTS)
    )
    assert mka == 4 * base + 3 * (attention + s.num_layers * (ranks + routers + knowledge))
    assert da == 4 * base + 3 * (attention + s.num_layers * 2 * 3 * 2 * (d + f))


def test_a_continuation_token_by_token():
    s, (prompt, new) = TINY["qwen2"], (5, 3)
    d, f, q, kv = s.hidden_size, s.intermediate_size, 24, 12
    expected = 2 * d * s.vocab_size  # the first new token is read off the prompt
    for read in range(1, prompt + new):  # the last new token is never read
        matmuls = 2 * s.num_layers * (2 * d * (q + kv) + 3 * d * f)
        attention = 4 * read * s.num_heads * s.head_dim * s.num_layers
        output = 2 * d * s.vocab_size if read > prompt else 0
        expected += matmuls + attention + output
    plain = Decoder(s, AdapterSettings(), NO_ADAPTERS, FLOAT32)
    assert continuation_flops(plain, prompt, new) == expected
    ranks = 2 * s.num_layers * 3 * (2 + 2) * (d + f)  # knowledge and alignment, each of 2 r
    aligned = Decoder(s, AdapterSettings(rank=1), DA_COMPONENTS, FLOAT32)
    assert continuation_flops(aligned, prompt, new) == expected + (prompt + new - 1) * ranks
