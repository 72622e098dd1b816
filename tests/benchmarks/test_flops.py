import jax
import jax.numpy as jnp
import pytest

from medcare_jax.benchmarks.flops import measured_cpu_peak, stated_peak, useful_flops_per_token
from medcare_jax.models.aggregators import MKA_COMPONENTS
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import decoder_settings
from medcare_jax.settings import AdapterSettings
from tests.helpers import FLOAT32

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
    assert useful_flops_per_token(decoder, 3072) == pytest.approx(expected, rel=1e-9)


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
    assert useful_flops_per_token(tied, 64) == useful_flops_per_token(untied, 64)


def test_peaks_of_devices():
    assert stated_peak("TPU v5 lite") == 197e12
    assert stated_peak("TPU v5") == 459e12
    assert stated_peak("cpu") is None


def test_the_measured_peak_is_a_rate_of_real_work():
    seconds = jax.jit(jnp.matmul).lower(jnp.ones((8, 8)), jnp.ones((8, 8))).compile()
    assert seconds.cost_analysis()["flops"] >= 2 * 8**3 - 8**2
    assert 1e8 < measured_cpu_peak(1) < 1e13
