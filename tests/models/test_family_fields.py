"""Fields of a `config.json`: of the type and range that they must have, or refused by name."""

import pytest

from medcare_jax.models.families import RopeScaling, decoder_settings
from tests.models.test_families import LLAMA3_1_8B, LLAMA3_ROPE, SMOLLM2_135M


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan, expected a number from"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps = -1.0, expected a number from"),
        ({"rope_theta": -1}, "rope_theta = -1, expected a number from"),
        ({"rope_theta": "1e6"}, "rope_theta = '1e6', expected a number from"),
        ({"max_position_embeddings": "256"}, "max_position_embeddings = '256', expected a whole"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers = 2.0, expected a whole number from 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0, expected a whole number from 1"),
        ({"num_hidden_layers": 10**10}, "num_hidden_layers = 10000000000, expected a whole"),
        ({"num_attention_heads": True}, "num_attention_heads = True, expected a whole number"),
        ({"num_attention_heads": 8000}, "head_dim 1 is not an even number of at least 2"),
        ({"num_key_value_heads": 0.5}, "num_key_value_heads = 0.5, expected a whole number"),
        ({"head_dim": -16}, "head_dim = -16, expected a whole number from 1"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false', expected true or false"),
        ({"rope_scaling": "x"}, "rope_scaling = 'x', expected an object"),
        ({"rope_parameters": [1]}, r"rope_parameters = \[1\], expected an object"),
        ({"rope_scaling": {"type": ["yarn"]}}, r"rope_scaling.type = \['yarn'\], expected a text"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": "2"}},
            "rope_scaling.factor = '2', expected a number",
        ),
        (
            {"rope_scaling": LLAMA3_ROPE | {"original_max_position_embeddings": 0.5}},
            "rope_scaling.original_max_position_embeddings = 0.5, expected a whole number",
        ),
        (
            {"rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 1}},
            "low_freq_factor = 1.0, expected less than high_freq_factor = 1.0",
        ),
        ({"layer_types": 5}, "layer_types = 5, expected a list of texts"),
        ({"layer_types": [["a"]]}, "layer_types = .*, expected a list of texts"),
        ({"model_type": ["llama"]}, "model_type .'llama'. is not supported"),
    ],
)
def test_a_value_of_another_type_or_range_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        decoder_settings(LLAMA3_1_8B | change)


def test_nulls_count_as_absent_and_whole_numbers_as_numbers():
    config = SMOLLM2_135M | {
        "head_dim": None,
        "num_key_value_heads": None,
        "rope_scaling": {"type": "linear", "factor": 2},
        "rope_theta": 10_000,
        "tie_word_embeddings": None,
        "layer_types": None,
    }
    settings = decoder_settings(config)
    assert (settings.head_dim, settings.num_kv_heads) == (64, 9)
    assert (settings.rope_theta, settings.rope_scaling) == (1e4, RopeScaling("linear", 2.0))
    assert settings.tie_word_embeddings is False
