"""A study of two cells of a few steps: what it leaves, what is done once, what digests separate."""

import json
import pathlib

import jax
import pytest

from configs import ablation_tiny
from medcare_jax.run.progress import Display
from medcare_jax.study import measures
from medcare_jax.study.runner import run_study
from medcare_jax.study.settings import make_study

pytestmark = pytest.mark.slow  # compiles a stage's step and the evaluation for each cell

CELLS = (
    {"name": "none", "constraint": {"kind": "none"}},
    {"name": "projection activation 0.8", "constraint": {"basis": "activation", "energy": 0.8}},
)


def small_config(cells=CELLS):
    """The tiny study, cut to a few steps."""
    config = ablation_tiny.get_config()
    with config.unlocked():
        config.seeds, config.cells = (0,), cells
        config.facts.update({"facts": 8, "notes": 8, "aligned": 8, "test": 8})
        config.run.base.random.update({"hidden_size": 32, "intermediate_size": 48})
        config.run.mesh.fsdp = 1
        config.run.mesh.data = jax.device_count()
        config.run.mka.epochs = config.run.da.epochs = 2
        config.run.evaluation.max_new_tokens = 2
    return config


def run(workdir: pathlib.Path, config) -> None:
    with jax.numpy_dtype_promotion("standard"):
        run_study(make_study(config), workdir, Display(is_shown=False))


@pytest.fixture(scope="module", autouse=True)
def _cache_of_compiled_programs():
    """The study sets one up in its workdir; other tests get back what they had."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run(folder, small_config())
    return folder


def results(workdir):
    found = [json.loads(path.read_text()) for path in workdir.glob("seed-0/*/result.json")]
    return {each["cell"]: each for each in found}


def test_cells_go_on_from_one_mka_and_each_is_scored(workdir):
    assert len(list(workdir.glob("seed-0/mka-*"))) == 1
    found = results(workdir)
    assert set(found) == {"none", "projection activation 0.8"}
    free, projected = found["none"], found["projection activation 0.8"]
    assert free["mka"] == projected["mka"]
    assert set(free["after"]) == {"icd10_retained", "icd10_coding"}
    assert free["after"]["icd10_retained"]["nll"] != projected["after"]["icd10_retained"]["nll"]
    assert projected["leak"] < 1e-6 < 0.1 < free["leak"]
    assert 0 < projected["width"] < 1
    assert "geometry" in free
    assert "geometry" not in projected
    removed = [free["geometry"]["bases"][f"activation {e:g}"] for e in measures.ENERGIES]
    assert [each["width"] for each in removed] == sorted(each["width"] for each in removed)


def test_what_is_done_is_not_done_again_and_what_is_lost_comes_out_the_same(workdir, monkeypatch):
    tables = {name: (workdir / name).read_bytes() for name in ("study.md", "study.json")}
    scored = []
    original = measures.task_scores
    monkeypatch.setattr(
        measures, "task_scores", lambda *a: scored.append(a[0].workdir.name) or original(*a)
    )
    run(workdir, small_config())
    assert scored == []
    next(workdir.glob("seed-0/projection*/result.json")).unlink()
    run(workdir, small_config())
    assert [name.rpartition("-")[0] for name in scored] == ["projection-activation-0.8"]
    assert {name: (workdir / name).read_bytes() for name in tables} == tables


def test_knowledge_that_learns_on_noise_that_is_kept_and_one_lora_end_with_numbers(tmp_path):
    cells = (
        CELLS[0],
        {"name": "learns", "constraint": {"kind": "penalty", "freeze_knowledge": False}},
        {"name": "kept", "method": "keep_noise"},
        {"name": "one", "method": "one_lora", "adapters": {"shared_experts": 4}},
    )
    run(tmp_path, small_config(cells))
    found = results(tmp_path)
    scores = {name: each["after"]["icd10_retained"]["nll"] for name, each in found.items()}
    assert len(set(scores.values())) == 4
    assert "overlap" in found["learns"]
    assert len(list(tmp_path.glob("seed-0/mka-*"))) == 2  # one LoRA has an MKA of its own


def test_another_setting_is_another_folder(workdir, monkeypatch):
    trained = []
    monkeypatch.setattr(
        "medcare_jax.study.runner.SeedRuns._mka",
        lambda self, cell: trained.append(cell.name) or pytest.skip("went to train it"),
    )
    changed = ({**CELLS[0], "da": {"learning_rate": 1e-3}}, CELLS[1])
    with pytest.raises(pytest.skip.Exception):
        run(workdir, small_config(changed))
    assert trained == ["none"]
