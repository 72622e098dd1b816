"""Useful work against the model's own parameters and against sums written out."""

from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.params import flatten
from medcare_jax.planning.bases import base_shape
from medcare_jax.planning.workload import matmul_parameters, useful_flops
from medcare_jax.settings import AdapterSettings, BaseSettings
from tests.helpers import TINY, abstract_params, tiny_decoder


def test_matmul_parameters_are_the_kernels_of_the_decoder():
    kernels = [
        leaf.size
        for path, leaf in flatten(abstract_params(tiny_decoder("qwen2", NO_ADAPTERS))).items()
        if path.endswith("kernel")
    ]
    assert matmul_parameters(TINY["qwen2"]) == sum(kernels)


def test_the_papers_bases_have_the_published_sizes():
    sizes = {"1.8B": 1.53e9, "7B": 7.10e9, "14B": 13.39e9}
    for name, size in sizes.items():
        shape, source = base_shape(BaseSettings(path=f"nowhere/Qwen1.5-{name}-Chat"))
        assert abs(matmul_parameters(shape) / size - 1) < 0.005
        assert "built-in shape" in source


def test_useful_work_is_four_per_parameter_and_three_times_the_rest():
    s, length = TINY["qwen2"], 64
    adapters = AdapterSettings(rank=1, shared_experts=1, experts=2, experts_per_token=1)
    attention = 2 * length * s.num_heads * s.head_dim * s.num_layers
    d, f, q, kv = s.hidden_size, s.intermediate_size, 24, 12
    noise = 2 * ((d + f) * 3 + 2 * d) * 2 + 2 * ((d + f) * 3 + 2 * f)
    knowledge = 2 * ((d + q) + 2 * (d + kv) + (q + d))
    expected = 4 * matmul_parameters(s) + 3 * (attention + s.num_layers * (noise + knowledge))
    assert useful_flops(s, adapters, "mka", length) == expected
    assert useful_flops(s, adapters, "da", length) < expected
