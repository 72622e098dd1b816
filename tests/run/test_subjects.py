"""What can be scored, by path: whole models, runs at a step, parts kept; the rest refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from medcare_jax.checkpoints import CheckpointError
from medcare_jax.conversion.exports import export_peft
from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.folding import fold
from medcare_jax.params import merge, split
from medcare_jax.run.convert import open_run_source
from medcare_jax.run.restore import open_model
from medcare_jax.run.subjects import Asked, open_subject
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh
from tests.run.workdirs import make_workdir, write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def made(tmp_path_factory, base):
    return make_workdir(tmp_path_factory.mktemp("run") / "workdir", base)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshSettings(fsdp=1), jax.devices()[:1])


def opened(mesh, path, **asked):
    with jax.set_mesh(mesh):
        return open_subject(Asked(str(path), **asked), mesh)


def logits(subject):
    """Of one row of any tokens."""
    tokens = np.arange(7, dtype=np.int32)[None] + 40
    params = {"params": subject.params}
    hidden = subject.decoder.apply(params, tokens, tokens * 0 + np.arange(7), tokens * 0 + 1)
    return np.asarray(subject.decoder.apply(params, hidden, method="unembed"))


def test_a_folder_is_a_whole_model(mesh, base):
    subject, model = opened(mesh, base)
    assert (model["kind"], model["keep"], model["stage"]) == ("huggingface", [], None)
    assert set(split(subject.params)) == {"base"}
    for flag in ({"keep": ("alignment",)}, {"base": str(base)}, {"stage": "mka"}):
        with pytest.raises(ConversionError, match="is a whole model"):
            opened(mesh, base, **flag)


@pytest.mark.parametrize(("stage", "step"), [("mka", 2), ("da", 4)])
def test_a_run_answers_as_its_own_model_does(mesh, made, stage, step):
    subject, model = opened(mesh, made.workdir, stage=stage, step=step)
    assert (model["kind"], model["stage"], model["step"]) == ("run", stage, step)
    assert "noise" not in model["keep"]
    with jax.set_mesh(mesh):
        own = open_model(made.workdir, stage=stage, step=step)
        trees = {name: tree for name, tree in own.trees.items() if name != "noise"}
        folded = fold(merge(trees), own.settings.adapters)
    bare = Decoder(own.base.settings, own.settings.adapters, NO_ADAPTERS, subject.decoder.compute)
    expected = logits(subject._replace(decoder=bare, params=folded))
    assert logits(subject) == pytest.approx(expected, abs=2e-4)


def test_parts_may_be_kept_alone(mesh, made):
    whole, facts = opened(mesh, made.workdir, stage="da", step=4)
    part, model = opened(mesh, made.workdir, stage="da", step=4, keep=("knowledge", "attention"))
    assert model["keep"] == ["attention", "knowledge"]
    assert model["digest"] != facts["digest"]
    assert set(split(part.params)) == {"base", "knowledge"}
    assert abs(logits(part) - logits(whole)).max() > 1e-3
    noisy, model = opened(mesh, made.workdir, stage="mka", keep=("attention", "knowledge", "noise"))
    assert set(split(noisy.params)) == {"base", "knowledge", "noise"}


def test_another_chat_template_is_another_model(mesh, base, tmp_path):
    _, model = opened(mesh, base)
    mended = shutil.copytree(base, tmp_path / base.name)
    (template,) = mended.glob("*.jinja")
    template.write_text(template.read_text() + " ")
    _, other = opened(mesh, mended)
    assert other["tokenizer"] != model["tokenizer"]
    assert {**other, "tokenizer": model["tokenizer"]} == model


def test_another_scale_is_another_model(mesh, made, base, tmp_path):
    source = open_run_source(made.workdir, "da", 4).keep(None, is_mixture_possible=False)
    export_peft(source, tmp_path / "adapter")
    _, model = opened(mesh, tmp_path / "adapter", base=str(base))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    _, other = opened(mesh, tmp_path / "adapter", base=str(base))
    assert other["digest"] != model["digest"]


def test_runs_and_adapters_end_answers_as_their_base_does(mesh, made, base, tmp_path):
    other, run = shutil.copytree(base, tmp_path / "base"), tmp_path / "run"
    (other / "generation_config.json").write_text('{"eos_token_id": [9, 7]}')
    config = json.loads((shutil.copytree(made.workdir, run) / "config.json").read_text())
    config["base"]["path"] = str(other)
    (run / "config.json").write_text(json.dumps(config))
    source = open_run_source(run, "da", 4).keep(None, is_mixture_possible=False)
    export_peft(source, tmp_path / "adapter")
    found = [
        opened(mesh, other)[0],
        opened(mesh, run)[0],
        opened(mesh, tmp_path / "adapter", base=str(other))[0],
    ]
    assert [subject.end_ids for subject in found] == [(9, 7)] * 3


def test_a_part_that_is_not_there_is_refused(mesh, made):
    with pytest.raises(ConversionError, match="has no alignment; it has attention, knowledge"):
        opened(mesh, made.workdir, stage="mka", keep=("alignment",))


def test_a_run_with_another_base_is_refused(mesh, made, tmp_path):
    run = shutil.copytree(made.workdir, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["base"]["path"] = str(shutil.copytree(config["base"]["path"], tmp_path / "base"))
    (run / "config.json").write_text(json.dumps(config))
    with (tmp_path / "base" / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(CheckpointError, match="put the base of the run back"):
        opened(mesh, run)
    with pytest.raises(ConversionError, match="--base is of adapters"):
        opened(mesh, made.workdir, base=str(tmp_path / "base"))


def test_adapters_have_no_stages(mesh, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    for flag in ({"stage": "mka"}, {"step": 3}):
        with pytest.raises(ConversionError, match="--stage and --step are of runs"):
            opened(mesh, tmp_path, base="anywhere", **flag)


def test_nothing_and_adapters_without_a_base_are_refused(mesh, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError)):
        opened(mesh, tmp_path / "none")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConversionError, match="name their base with --base"):
        opened(mesh, tmp_path)
