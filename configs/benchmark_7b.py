"""A random model in the shape of Qwen1.5-7B, for the step on an accelerator against PyTorch.

    python tools/benchmark.py --config=configs/benchmark_7b.py --output=result.json

bfloat16 base and compute, 2 rows of 3,072 tokens; one GPU of 80 GB or a TPU slice. A contender
that does not fit is reported so; data.rows makes the step smaller. Not run on an accelerator yet.
On a GPU add --config.compute.attention=cudnn. Difference from benchmark_1_8b.py: shape and rows.
"""

import ml_collections

from configs import benchmark_1_8b


def get_config() -> ml_collections.ConfigDict:
    """The benchmark."""
    config = benchmark_1_8b.get_config()
    config.base.random.update(
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    config.data.rows = 2
    return config
