"""Both PyTorch forms against this project's projection, with B away from zero."""

import jax
import numpy as np
import pytest

from medcare_jax.models.aggregators import AdaptedLinear
from medcare_jax.params import KNOWLEDGE, NOISE
from medcare_jax.settings import AdapterSettings
from tests.helpers import FLOAT32

pytestmark = pytest.mark.torch

SIZES = {"rank": 3, "experts": 5, "experts_per_token": 2, "shared_experts": 2}
IN, OUT, ROWS, LENGTH = 7, 11, 2, 13


def arrays():
    random = np.random.default_rng(0)
    draw = lambda *shape: random.standard_normal(shape, np.float32)
    knowledge = {"lora_a": draw(IN, 6), "lora_b": draw(6, OUT)}
    noise = {"lora_a": draw(IN, 15), "lora_b": draw(15, OUT)}
    noise |= {"router_kernel": draw(IN, 5), "router_bias": draw(5)}
    return {"kernel": draw(IN, OUT), KNOWLEDGE: knowledge, NOISE: noise}, draw(ROWS, LENGTH, IN)


@pytest.mark.parametrize("form", ["ExpertStack", "RankSpace"])
def test_output_and_gradients_are_ours(form):
    import torch

    from medcare_jax.benchmarks import torch_adapters

    params, x = arrays()
    base = torch.nn.Linear(IN, OUT, bias=False)
    base.weight.data = torch.from_numpy(params["kernel"].T.copy())
    theirs = getattr(torch_adapters, form)(base, SIZES, scale=1.5)
    tensors = {name: jax.tree.map(torch.from_numpy, params[name]) for name in (KNOWLEDGE, NOISE)}
    theirs.load(tensors[KNOWLEDGE], tensors[NOISE])
    inputs = torch.from_numpy(x).requires_grad_()
    y = theirs(inputs)
    y.square().sum().backward()

    settings = AdapterSettings(**SIZES, alpha=4.5)
    ours = AdaptedLinear(OUT, (KNOWLEDGE, NOISE), False, False, settings, FLOAT32)
    np.testing.assert_allclose(y.detach(), ours.apply({"params": params}, x), rtol=0, atol=2e-4)
    total = lambda p, values: (ours.apply({"params": p}, values) ** 2).sum()
    of_params, of_x = jax.grad(total, (0, 1))(params, x)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())
    close(inputs.grad, of_x)
    close(theirs.router.weight.grad, of_params[NOISE]["router_kernel"].T)
    first = theirs.lora_a.grad[:6] if form == "RankSpace" else theirs.shared[0].weight.grad
    close(first, of_params[KNOWLEDGE]["lora_a"].T)
    if form == "RankSpace":
        expert = theirs.lora_b.grad[:, 6 + 3 * 3 : 6 + 4 * 3]
    else:
        expert = theirs.experts[3][1].weight.grad
    close(expert, of_params[NOISE]["lora_b"][9:12].T)
