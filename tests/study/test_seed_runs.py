"""How a study and the runs of a seed begin, without training anything."""

import errno
import types

import jax
import pytest

from configs import ablation_tiny, tiny
from medcare_jax import distributed
from medcare_jax.evaluation.tasks import ALIGNMENT, KNOWLEDGE
from medcare_jax.files import DiskFullError
from medcare_jax.models.aggregators import KNOWLEDGE_COMPONENTS, MKA_COMPONENTS
from medcare_jax.params import BASE, NOISE
from medcare_jax.params import KNOWLEDGE as KNOWLEDGE_TREE
from medcare_jax.run.progress import Display
from medcare_jax.settings import make_settings
from medcare_jax.sharding import ShardingError
from medcare_jax.study import runner
from medcare_jax.study.runner import SeedRuns, run_study
from medcare_jax.study.settings import KEEP_NOISE, MEDCARE, make_study


@pytest.fixture
def made(monkeypatch):
    """Folders that tasks were made in; the base and the data are not read."""
    folders = []
    original = runner.write_fact_tasks

    def write(folder, **sizes):
        folders.append(folder)
        return original(folder, **sizes)

    tasks = [
        types.SimpleNamespace(spec=types.SimpleNamespace(kind=kind))
        for kind in (KNOWLEDGE, ALIGNMENT)
    ]
    run = types.SimpleNamespace(data=types.SimpleNamespace(tasks=tasks))
    monkeypatch.setattr(runner, "write_fact_tasks", write)
    monkeypatch.setattr(runner, "open_run", lambda *_: run)
    return folders


def runs_in(folder):
    study = make_study(ablation_tiny.get_config())
    return SeedRuns(study, 0, folder, Display(is_shown=False))


def test_the_tasks_of_a_seed_are_made_once_for_all_cells(made, tmp_path):
    runs = runs_in(tmp_path)
    for cell in runs.study.cells:
        settings = runs._with_tasks(runs.study.with_seed(cell, 0))
        assert settings.mka.files == (str(tmp_path / "data/1-stage/train.json"),)
        assert settings.da.files == (str(tmp_path / "data/2-stage/train.json"),)
        assert settings.evaluation.folder == str(tmp_path / "data/test")
    assert made == [tmp_path / "data"]
    assert sorted(path.name for path in (tmp_path / "data/test").iterdir()) == [
        "coding.json",
        "retained.json",
    ]


def test_of_several_processes_one_makes_them(made, tmp_path, monkeypatch):
    """All share the folder, and who writes a draft takes away that of another."""
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    runs_in(tmp_path)
    assert made == []


def test_what_a_cell_would_meet_after_mka_is_refused_before(made, tmp_path, monkeypatch):
    """Its sixth cell needs the host's CPU, and all need rows that the devices can share."""

    def none(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    config = ablation_tiny.get_config()
    config.run.data.rows = 9
    display = Display(is_shown=False)
    with pytest.raises(ShardingError, match=r"data\.rows = 9 cannot be cut"):
        run_study(make_study(config), tmp_path / "rows", display)
    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(ValueError, match="add cpu to it, such as JAX_PLATFORMS=tpu,cpu"):
        run_study(make_study(ablation_tiny.get_config()), tmp_path / "host", display)
    assert made == list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("baseline", "has_angles"), [("none", True), ("projection span", False), ("one LoRA", False)]
)
def test_natural_angles_are_those_of_a_free_alignment(
    made, tmp_path, monkeypatch, baseline, has_angles
):
    """One LoRA has no alignment at all, and that of a projected cell is not free."""
    settings = make_settings(tiny.get_config())
    run = types.SimpleNamespace(workdir=tmp_path, settings=settings)
    monkeypatch.setattr(SeedRuns, "_run_of", lambda *_: run)
    monkeypatch.setattr(SeedRuns, "_mka", lambda *_: {"after": {}})
    for part in ("_aligned", "_one_lora"):
        monkeypatch.setattr(runner, part, lambda *_: {"trees": {}, "after": {}})
    monkeypatch.setattr(runner, "_geometry", lambda *_: {"angles": {}})
    config = ablation_tiny.get_config()
    config.baseline = baseline
    runs = SeedRuns(make_study(config), 0, tmp_path, Display(is_shown=False))
    (cell,) = (cell for cell in runs.study.cells if cell.name == baseline)
    assert ("geometry" in runs._result(cell)) == has_angles


def test_a_cell_is_compared_with_what_it_keeps_of_mka(made, tmp_path, monkeypatch):
    """And what cells share is scored once, in this process and for the next."""
    asked = []

    def score(run, components, trees):
        asked.append((components, list(trees)))
        return {"score": len(asked)}

    monkeypatch.setattr(runner.measures, "task_scores", score)
    monkeypatch.setattr(SeedRuns, "_tasks", lambda *_: "tasks")
    study = make_study(ablation_tiny.get_config())
    trees = dict.fromkeys((BASE, KNOWLEDGE_TREE, NOISE), {})
    run = types.SimpleNamespace(workdir=tmp_path, settings=make_settings(tiny.get_config()))

    def after(*methods):
        runs = SeedRuns(study, 0, tmp_path, Display(is_shown=False))
        cells = {cell.method: cell for cell in study.cells}
        return [runs._after_mka(run, cells[method], trees) for method in methods]

    first = after(MEDCARE, KEEP_NOISE, MEDCARE)
    assert first == [{"score": 1}, {"score": 2}, {"score": 1}]
    assert asked == [
        (KNOWLEDGE_COMPONENTS, [BASE, KNOWLEDGE_TREE]),
        (MKA_COMPONENTS, [BASE, KNOWLEDGE_TREE, NOISE]),
    ]
    assert after(KEEP_NOISE, MEDCARE) == [{"score": 2}, {"score": 1}]
    assert len(asked) == 2


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runner, "SeedRuns", full)
    before = jax.config.jax_compilation_cache_dir
    try:
        with pytest.raises(DiskFullError, match=f"the disk of {tmp_path} is full"):
            run_study(make_study(ablation_tiny.get_config()), tmp_path, Display(is_shown=False))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
