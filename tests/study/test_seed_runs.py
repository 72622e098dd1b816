"""What a seed's runs begin with, without training any of them."""

import types

import pytest

from configs import ablation_tiny
from medcare_jax import distributed
from medcare_jax.evaluation.tasks import ALIGNMENT, KNOWLEDGE
from medcare_jax.run.progress import Display
from medcare_jax.study import runner
from medcare_jax.study.runner import SeedRuns
from medcare_jax.study.settings import make_study


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
