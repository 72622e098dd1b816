"""A random model in the shape of Qwen1.5-1.8B, for the step on an accelerator against PyTorch.

    python tools/benchmark.py --config=configs/benchmark_1_8b.py --output=result.json

bfloat16 base and compute, 4 rows of 3,072 tokens; one GPU of 80 GB or a TPU slice. A contender
that does not fit is reported so; data.rows makes the step smaller. Not run on an accelerator yet.
On a GPU add --config.compute.attention=cudnn. Difference from base.py: shape, rows, no dropout, no
warm-up.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The benchmark."""
    config = base.get_config()
    config.base.path = "random"
    with config.unlocked():
        config.base.random = {
            "model_type": "qwen2",
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 5504,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "max_position_embeddings": 32_768,
            "tie_word_embeddings": False,
        }
    config.adapters.dropout = 0.0
    config.data.rows = 4
    config.mka.warmup_share = 0.0
    return config
