"""A random model of 128 million parameters: what the step costs on a CPU against PyTorch.

    python tools/benchmark.py --config=configs/benchmark_128m.py

Hidden 768, FFN 2048, 12 layers, vocabulary 16,384, 4 rows of 512 tokens, all float32; 17.7 million
parameters learn. Two cores and 10 GB of memory are enough. Figures: docs/performance.md. Difference
from base.py: sizes, float32, no dropout (its masks would differ between contenders), no
warm-up.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The benchmark."""
    config = base.get_config()
    config.base.path = "random"
    config.base.dtype = "float32"
    with config.unlocked():
        config.base.random = {
            "model_type": "qwen2",
            "vocab_size": 16_384,
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        }
    config.compute.dtype = "float32"
    config.compute.adapter_dtype = "float32"
    config.adapters.dropout = 0.0
    config.data.row_length = 512
    config.data.rows = 4
    config.mka.warmup_share = 0.0
    return config
