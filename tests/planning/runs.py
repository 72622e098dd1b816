"""Settings of a small model that a plan compiles in seconds."""

from typing import Any

from configs import base
from medcare_jax.settings import Settings, make_settings

VOCABULARY, HIDDEN, FFN, LAYERS, HEADS = 4096, 256, 512, 3, 2


def settings(**changes: Any) -> Settings:
    """The run of a small model, changed."""
    config = base.get_config()
    config.base.path = "random"
    with config.unlocked():
        config.base.random = {
            "model_type": "qwen2",
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": FFN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 1024,
        }
    config.update_from_flattened_dict({"data.rows": 4, "data.row_length": 256, **changes})
    return make_settings(config)
