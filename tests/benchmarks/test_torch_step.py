"""PyTorch's base weights; what the contenders compute with them is in test_step.py."""

import numpy as np
import pytest

from configs import tiny
from medcare_jax.benchmarks.job import Job
from medcare_jax.benchmarks.weights import draw

pytestmark = pytest.mark.torch


@pytest.fixture
def job():
    config = tiny.get_config()
    config.data.row_length, config.data.rows = 8, 2
    config.compute.remat = "none"
    return Job("torch_rank_space", config.to_dict(), (1e-3, 1e-3), warmup=0)


def test_the_base_is_drawn_by_the_names_of_our_tree(job):
    from medcare_jax.benchmarks.torch_step import make_model

    weights = dict(make_model(job).named_parameters())
    kernel = draw(0, "model/layers/mlp/down_proj/kernel", 1, (80, 48))
    np.testing.assert_array_equal(weights["model.layers.1.mlp.down_proj.weight"], kernel.T)
    bias = draw(0, "model/layers/self_attn/k_proj/bias", 2, (24,))
    np.testing.assert_array_equal(weights["model.layers.2.self_attn.k_proj.bias"], bias)
    table = draw(0, "model/embed_tokens/embedding", 0, (272, 48))
    np.testing.assert_array_equal(weights["model.embed_tokens.weight"], table)
    assert not any(weight.requires_grad for weight in weights.values())
