"""A run's model comes back from its checkpoints alone, and only if everything fits."""

import json
import logging
import pathlib
import shutil

import jax
import pytest

from medcare_jax.checkpoints import CheckpointError, sign
from medcare_jax.conversion import hub
from medcare_jax.models.aggregators import (
    ATTENTION_PROJECTIONS,
    DA_COMPONENTS,
    FFN_PROJECTIONS,
    MKA_COMPONENTS,
)
from medcare_jax.models.folding import fold
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, NOISE, digest, merge
from medcare_jax.run import restore
from medcare_jax.run.convert import open_run_source
from medcare_jax.run.restore import ATTENTION, open_model, read_adapters
from medcare_jax.run.subjects import Asked, open_subject
from medcare_jax.run.workdir import WorkdirError
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh
from medcare_jax.training.stages import select
from tests.run.workdirs import make_workdir, write_base


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    return make_workdir(place / "workdir", write_base(place / "base"))


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made.workdir, tmp_path / "copy")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("step", "expected"), [(None, 3), (2, 2), (3, 3)])
def test_mka_at_any_step(made, step, expected):
    model = open_model(made.workdir, stage="mka", step=step)
    assert model.trees.keys() == {BASE, KNOWLEDGE, NOISE}
    for name, tree in made.trees["mka", expected].items():
        assert digest(model.trees[name]) == digest(tree)
    assert digest(model.trees[BASE]) == digest(made.base.params)
    assert model.settings == made.settings


@pytest.mark.parametrize(("step", "expected"), [(None, 4), (1, 1)])
def test_da_is_base_with_mkas_last_attention_and_the_alignment_of_the_step(made, step, expected):
    model = open_model(made.workdir, step=step)
    knowledge = made.trees["mka", 3][KNOWLEDGE]
    attention = select(knowledge, ATTENTION_PROJECTIONS)
    merged = fold(merge({BASE: made.base.params, KNOWLEDGE: attention}), made.settings.adapters)
    assert digest(model.trees[BASE]) == digest(merged) != digest(made.base.params)
    assert digest(model.trees[KNOWLEDGE]) == digest(select(knowledge, FFN_PROJECTIONS))
    alignment = made.trees["da", expected][ALIGNMENT]
    assert digest(model.trees[ALIGNMENT]) == digest(alignment)
    assert model.base.tokenizer is not None


def test_knowledge_that_went_on_learning_is_the_one_of_da(tmp_path):
    base = write_base(tmp_path / "base")
    made = make_workdir(tmp_path / "w", base, kind="penalty", freeze_knowledge=False)
    found = read_adapters(tmp_path / "w")
    assert digest(found.trees[KNOWLEDGE]) == digest(made.trees["da", 4][KNOWLEDGE])
    assert digest(found.trees[ATTENTION]) == digest(
        select(made.trees["mka", 3][KNOWLEDGE], ATTENTION_PROJECTIONS)
    )


def test_the_latest_stage_and_its_components(copy):
    found = read_adapters(copy, stage=None)
    assert (found.stage, found.step, found.components) == ("da", 4, DA_COMPONENTS)
    shutil.rmtree(copy / "da")
    found = read_adapters(copy, stage=None)
    assert (found.stage, found.step, found.components) == ("mka", 3, MKA_COMPONENTS)


def test_a_first_save_that_is_under_way_is_not_the_latest_yet(copy):
    """Another process may be training: Orbax has committed the folder, and it is signed next."""
    shutil.rmtree(copy / "da/checkpoints/1")
    (copy / "da/checkpoints/4/manifest.json").unlink()
    found = read_adapters(copy, stage=None)
    assert (found.stage, found.step) == ("mka", 3)


def test_a_damaged_checkpoint_is_passed_over_but_not_if_it_was_asked_for(copy, caplog):
    victim = next((copy / "da/checkpoints/4/state").rglob("d/*"))
    victim.write_bytes(bytes(len(victim.read_bytes())))
    with caplog.at_level(logging.WARNING):
        assert read_adapters(copy).step == 1
    assert "does not match its sha256" in caplog.text
    with pytest.raises(CheckpointError, match="step 4: .* does not match its sha256"):
        read_adapters(copy, step=4)
    assert (copy / "da/checkpoints/4").is_dir()  # reading moves nothing


def test_a_checkpoint_that_was_never_signed(copy):
    for step in (1, 4):
        (copy / f"da/checkpoints/{step}/manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no good checkpoint: step 4: .*step 1: it was nev"):
        read_adapters(copy)


def test_da_needs_the_end_of_mka(copy):
    shutil.rmtree(copy / "mka/checkpoints/3")
    with pytest.raises(CheckpointError, match="after step 3 of MKA, .* is of step 2"):
        read_adapters(copy)


def test_da_belongs_to_the_mka_that_it_was_trained_after(copy):
    folder = copy / "da/checkpoints/4"
    edit(folder / "meta/metadata", lambda x: x["meta"].update({"knowledge.digest": "another"}))
    sign(folder)
    with pytest.raises(CheckpointError, match="not of one run: the knowledge of mka has .*another"):
        read_adapters(copy)
    assert read_adapters(copy, step=1).step == 1
    assert read_adapters(copy, stage="mka").step == 3


def test_another_base_is_refused(made, copy, tmp_path):
    other = shutil.copytree(made.settings.base.path, tmp_path / "other")
    edit(other / "config.json", lambda config: config.update(rope_theta=5e4))
    edit(copy / "config.json", lambda config: config["base"].update(path=str(other)))
    with pytest.raises(CheckpointError, match="other has digest [0-9a-f]{64}, the adapters were"):
        open_model(copy, stage="mka")


def opened(workdir):
    open_model(workdir, stage="mka")


def converted(workdir):
    open_run_source(workdir, "mka", None)


def evaluated(workdir):
    open_subject(Asked(str(workdir)), make_mesh(MeshSettings(fsdp=1), jax.devices()[:1]))


@pytest.mark.parametrize("act", [opened, converted, evaluated])
@pytest.mark.parametrize("name", ["base", "models/base", "a/b/base"])
def test_a_relative_base_that_is_not_here_says_from_where_it_is_looked_for(
    copy, tmp_path, monkeypatch, act, name
):
    def unreachable(*_, **__):
        raise FileNotFoundError("models/base is no path here, and the hub cannot be reached")

    monkeypatch.setattr(hub, "fetch", unreachable)  # `models/base` may be a name of the hub
    edit(copy / "config.json", lambda config: config["base"].update(path=name))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        act(copy)
    assert f"base.path = {name!r}: a relative path is looked for from" in str(error.value)
    assert f"{tmp_path}. Go to the folder that the run was started in" in str(error.value)


def test_a_relative_base_is_found_where_the_run_was_started(made, copy, monkeypatch):
    base = pathlib.Path(made.settings.base.path)
    edit(copy / "config.json", lambda config: config["base"].update(path=base.name))
    monkeypatch.chdir(base.parent)
    converted(copy)


@pytest.mark.slow
def test_a_random_base_is_made_again(tmp_path):
    made = make_workdir(tmp_path / "w")
    assert digest(open_model(tmp_path / "w", stage="mka").trees[BASE]) == digest(made.base.params)
    edit(tmp_path / "w/config.json", lambda config: config.update(seed=5))  # other weights
    with pytest.raises(CheckpointError, match="the base random has digest [0-9a-f]{64}, the ad"):
        open_model(tmp_path / "w", stage="mka")


def test_changed_adapter_settings_are_refused(copy):
    edit(copy / "config.json", lambda config: config["adapters"].update(alpha=9.0))
    with pytest.raises(CheckpointError, match=r"adapters\.alpha was 8\.0, config\.json says 9\.0"):
        read_adapters(copy)


def test_a_checkpoint_that_knows_less_of_the_adapters_than_we_do_is_refused(copy, monkeypatch):
    for stage, step in (("mka", 3), ("da", 4)):
        saved = copy / stage / "checkpoints" / str(step) / "meta" / "metadata"
        edit(saved, lambda content: content["meta"].pop("adapters.use_rslora"))
    monkeypatch.setattr(restore, "find_fault", lambda folder: None)
    with pytest.raises(CheckpointError, match=r"says nothing of adapters\.use_rslora; an earlier"):
        read_adapters(copy)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"step": 2}, CheckpointError, "no checkpoint of step 2; it has 1, 4"),
        ({"stage": "sft"}, WorkdirError, "'sft'; a run has mka and da"),
    ],
)
def test_what_is_not_there(made, asked, error, message):
    with pytest.raises(error, match=message):
        read_adapters(made.workdir, **asked)


def test_no_run(tmp_path):
    with pytest.raises(WorkdirError, match=r"it has no config\.json"):
        read_adapters(tmp_path)
