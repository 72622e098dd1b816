"""A whole plan: what fits, what does not, what cannot be; the real step of a small model."""

import dataclasses

import jax
import pytest

from medcare_jax.planning import memory, screen
from medcare_jax.planning.bases import base_shape
from medcare_jax.planning.plan import _fit, make_plan
from medcare_jax.planning.topologies import parse
from medcare_jax.planning.worker import PlanError, plan_in_subprocess
from medcare_jax.settings import SettingsError
from tests.planning.runs import settings


def test_what_does_not_fit_says_which_kind_and_three_remedies():
    needs = memory.with_peak(memory.Memory(2**30, 2**28, 2**28, 2**20, None, None), 20 * memory.GIB)
    asked = settings(**{"compute.remat": "products"})
    mesh = {"data": 1, "fsdp": 4, "tensor": 1}
    place = memory.Place(mesh, 1, base_shape(asked.base)[0], rows=2)
    plan = _fit(asked, needs, parse("v5e:2x2"), place)
    assert plan["fits"] is False
    assert plan["largest_kind"] == "temporary"
    assert [remedy.split(":")[0].split("=")[0] for remedy in plan["remedies"]] == [
        "--config.compute.remat",
        "--config.data.accumulation",
        "--config.compute.loss_chunk",
    ]
    assert plan["hbm_free"] == parse("v5e:2x2").chip.hbm - 20 * memory.GIB


def test_what_the_compiler_refuses_by_less_than_its_figure_shows_does_not_fit(monkeypatch):
    class Refused:
        def compile(self):
            raise jax.errors.JaxRuntimeError("Used 15.75G of 15.75G hbm. Exceeded by 1.2M.")

    needs = memory.Memory(2**30, 2**28, 2**28, 2**20, None, None)
    module = "medcare_jax.planning.plan"
    monkeypatch.setattr(f"{module}.compile_devices", lambda _: jax.devices()[:4])
    monkeypatch.setattr(f"{module}.version", lambda name: "1")
    monkeypatch.setattr(f"{module}.program.build", lambda *_: Refused())
    monkeypatch.setattr(f"{module}.memory.arguments", lambda _: needs)
    plan = make_plan(settings(), "mka", parse("v5e:2x2"))
    assert plan["fits"] is False
    assert "does not fit" in screen.summary(plan)
    assert "DOES NOT FIT" in screen.render(plan)


def test_attention_whose_work_depends_on_the_dialogues_is_not_planned():
    with pytest.raises(SettingsError, match="which a plan does not know: leave it at auto"):
        make_plan(settings(**{"compute.attention": "blocks"}), "mka", parse("v5e:2x2"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.rows": 6}, "data.rows = 6 cannot be cut"),
        ({"mesh.fsdp": 1, "mesh.tensor": 4}, "num_attention_heads = 2 is not divisible by mesh.te"),
    ],
)
def test_what_the_mesh_cannot_cut_is_refused_as_in_the_run(changes, message):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    with pytest.raises(PlanError, match=message):
        plan_in_subprocess(dataclasses.asdict(settings(**changes)), "mka", "v5e:2x2")


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
