"""A run of seconds for tests: a random Qwen2 of no two equal sizes, a tokenizer of bytes.

    python tools/medcare.py --config=configs/tiny.py --workdir=runs/tiny

It learns nothing worth having; it goes through every part of the job. Differences from base.py:
all sizes.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The run."""
    config = base.get_config()
    config.base.path = "random"
    with config.unlocked():
        config.base.random = {
            "model_type": "qwen2",
            "vocab_size": 272,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 1024,
        }
    config.base.dtype = "float32"
    config.compute.dtype = "float32"
    config.compute.adapter_dtype = "float32"
    config.compute.remat = "none"
    config.adapters.rank = 4
    config.adapters.alpha = 8.0
    config.adapters.experts = 3
    config.icd10.make = True
    config.icd10.mka_knowledge = 24
    config.icd10.mka_alignment = 16
    config.icd10.da_alignment = 24
    config.icd10.test = 6
    config.data.row_length = 512
    config.data.rows = 8
    config.mka.learning_rate = 2e-3
    config.da.learning_rate = 2e-3
    config.checkpoint.every_steps = 2
    config.evaluation.max_new_tokens = 8
    config.export.dtype = "float32"
    return config
