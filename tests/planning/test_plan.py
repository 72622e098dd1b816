"""A whole plan: what fits, what does not, what cannot be; the real step of a small model."""

import dataclasses
import types

import pytest

from configs import base
from medcare_jax.planning import memory, screen
from medcare_jax.planning.plan import _fit, check_divides
from medcare_jax.planning.topologies import parse
from medcare_jax.planning.worker import PlanError, plan_in_subprocess
from medcare_jax.settings import make_settings
from medcare_jax.sharding import ShardingError
from tests.helpers import TINY


def settings(**changes):
    """The run of a small model, changed."""
    config = base.get_config()
    config.base.path = "random"
    with config.unlocked():
        config.base.random = {
            "model_type": "qwen2",
            "vocab_size": 4096,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 1024,
        }
    config.update_from_flattened_dict({"data.rows": 4, "data.row_length": 256, **changes})
    return make_settings(config)


def mesh(**sizes):
    return types.SimpleNamespace(shape={"data": 1, "fsdp": 1, "tensor": 1} | sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 3}, "4 rows are not divisible by mesh data x fsdp = 3; for example data.rows=6"),
        ({"tensor": 3}, "4 heads are not divisible by mesh.tensor = 3"),
        ({"tensor": 4}, "2 key-value heads are not divisible by mesh.tensor = 4"),
    ],
)
def test_what_a_mesh_cannot_cut_is_refused_with_numbers(sizes, message):
    with pytest.raises(ShardingError) as caught:
        check_divides(settings(), TINY["qwen2"], mesh(**sizes))
    assert message in str(caught.value)
    assert check_divides(settings(), TINY["qwen2"], mesh(fsdp=2, tensor=2)) == 2


def test_what_does_not_fit_says_which_kind_and_three_remedies():
    needs = memory.with_peak(memory.Memory(2**30, 2**28, 2**28, 2**20, None, None), 20 * memory.GIB)
    plan = _fit(settings(**{"compute.remat": "products"}), needs, parse("v5e:2x2"), rows=2)
    assert plan["fits"] is False
    assert plan["largest_kind"] == "temporary"
    assert [remedy.split(":")[0].split("=")[0] for remedy in plan["remedies"]] == [
        "--config.compute.remat",
        "--config.data.accumulation",
        "--config.compute.loss_chunk",
    ]
    assert plan["hbm_free"] == parse("v5e:2x2").chip.hbm - 20 * memory.GIB


def test_the_compilers_refusal_is_read():
    message = "RESOURCE_EXHAUSTED: XLA:TPU compile: Used 36.10G of 15.75G hbm. Exceeded by 20G"
    assert memory.exhausted_bytes(message) == int(36.10 * 2**30)
    assert memory.exhausted_bytes("INTERNAL: no") is None


def test_a_slice_that_is_none_is_one_error():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    with pytest.raises(PlanError, match="v5e:4by4"):
        plan_in_subprocess(dataclasses.asdict(settings()), "mka", "v5e:4by4")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["mka", "da"])
def test_the_real_step_compiles_for_a_slice_and_is_explained(stage):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    plan = plan_in_subprocess(dataclasses.asdict(settings()), stage, "v5e:2x2")
    assert plan["fits"] is True
    assert plan["hbm_peak"] == sum(plan["hbm"].values())
    gathered = sum(e["bytes"] for e in plan["collectives"] if e["kind"] == "all-gather")
    layer = 2 * (4 * 256 * 256 + 3 * 256 * 512)
    assert gathered < 2 * 3 * layer + 2 * 2 * 4096 * 256 + 4 * 2**20
    assert 0 < plan["lora_mfu"][0] <= plan["lora_mfu"][1] < 1
    assert "FITS" in screen.render(plan)
