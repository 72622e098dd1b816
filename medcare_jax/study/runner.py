"""Trains and scores every cell of every seed, each once, however often the study is stopped.

    WORKDIR/seed-0/data/                    tasks made for the seed, if any are made
    WORKDIR/seed-0/mka-DIGEST/              MKA for all cells of a method; scores: after-DIGEST.json
    WORKDIR/seed-0/CELL-DIGEST/             DA from there; result.json: scores and measures
    WORKDIR/study.{json,md,html}            the table, made anew from what is there

A digest stands for the settings, base and data that decide the numbers, so a changed study does
not meet the results of another one.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp

from medcare_jax import distributed
from medcare_jax.agreement import together
from medcare_jax.distributed import StoppedEarly
from medcare_jax.evaluation.tasks import ALIGNMENT as ALIGNMENT_KIND
from medcare_jax.evaluation.tasks import KNOWLEDGE as KNOWLEDGE_KIND
from medcare_jax.files import naming_full_disk, read_json, write_json
from medcare_jax.models.aggregators import (
    FFN_PROJECTIONS,
    KNOWLEDGE_COMPONENTS,
    MKA_COMPONENTS,
)
from medcare_jax.orthogonality import max_leak
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, NOISE, Tree
from medcare_jax.run.context import Run
from medcare_jax.run.handover import covariance, hand_over
from medcare_jax.run.job import Job, checked_mesh, open_run
from medcare_jax.run.outputs import settings_warnings
from medcare_jax.run.progress import Display
from medcare_jax.run.workdir import hold
from medcare_jax.settings import Settings
from medcare_jax.sharding import make_mesh
from medcare_jax.study import measures, report
from medcare_jax.study.drawn import draw_tasks
from medcare_jax.study.facts import write_fact_tasks
from medcare_jax.study.settings import KEEP_NOISE, ONE_LORA, Cell, Study
from medcare_jax.training.stages import MKA, ONE_LORA_DA, ONE_LORA_MKA, select


def run_study(study: Study, workdir: pathlib.Path, display: Display) -> None:
    """Does what of the study is not done yet, then writes its report.

    Raises:
      WorkdirError, CheckpointError, StoppedEarly, ValueError, OSError: As `run/job.py`.
    """
    with together():
        # All cells share it; each is asked, so that none is refused after hours.
        mesh, *_ = [checked_mesh(cell.settings) for cell in study.cells]
    with naming_full_disk(workdir), hold(workdir):
        # Cells differ in few programs, and seeds in none: each is compiled once for all of them.
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
        results: list[dict[str, Any]] = []
        with jax.set_mesh(mesh):
            for seed in study.seeds:
                results += SeedRuns(study, seed, workdir / f"seed-{seed}", display).all_cells()
                if distributed.is_first():
                    report.write_study(workdir, study, results)
        display.line(f"report: {workdir / 'study.html'}")


class SeedRuns:
    """All cells of one seed; base and data are read once."""

    def __init__(self, study: Study, seed: int, folder: pathlib.Path, display: Display) -> None:
        """Opens the seed's run."""
        self.study, self.seed, self.folder, self.display = study, seed, folder, display
        display.headline(f"seed {seed}")
        with together():  # once, not for each cell: the data that are drawn from may be large
            if distributed.is_first():
                self._make_tasks()
        settings = self._with_tasks(study.with_seed(study.cells[0], seed))
        mesh = make_mesh(settings.mesh)
        self.run = open_run(settings, folder, display, mesh)
        kinds = {task.spec.kind for task in self.run.data.tasks}
        if kinds != {KNOWLEDGE_KIND, ALIGNMENT_KIND}:
            raise ValueError(
                f"evaluation.tasks ask for {' and '.join(sorted(kinds)) or 'nothing'}; a study "
                f"needs tasks of both kinds, {KNOWLEDGE_KIND} and {ALIGNMENT_KIND}"
            )
        self._trained: dict[pathlib.Path, dict[str, Tree]] = {}
        self._scored: dict[pathlib.Path, dict[str, Any]] = {}

    def all_cells(self) -> list[dict[str, Any]]:
        """The results of all cells, of which those that are not there yet are made."""
        return [self._result(cell) for cell in self.study.cells]

    def _result(self, cell: Cell) -> dict[str, Any]:
        """The result of one cell."""
        run = self._run_of(cell)
        known = read_json(run.workdir / "result.json")
        if known is not None:
            self.display.line(f"{cell.name}: result is there already")
            return known
        if distributed.must_stop():
            raise StoppedEarly("stopped between two cells; those done are kept")
        self.display.headline(f"seed {self.seed}, cell {cell.name}")
        for warning in settings_warnings(run.settings):
            self.display.line(f"WARNING: {warning}")
        mka = self._mka(cell)
        found = {
            "seed": self.seed,
            "cell": cell.name,
            "mka": mka["after"],
            **(_one_lora if cell.method == ONE_LORA else _aligned)(run, cell, mka),
        }
        if cell.name == self.study.baseline and cell.has_free_alignment:
            found["geometry"] = _geometry(run, mka, found["trees"])
        found.pop("trees")
        if distributed.is_first():
            write_json(run.workdir / "result.json", found)
        # As it will be read when the study goes on: the table must not depend on when it stopped.
        again: dict[str, Any] = json.loads(json.dumps(found, sort_keys=True))
        return again

    def _mka(self, cell: Cell) -> dict[str, Any]:
        """MKA's trees and the scores after it; trained once for all cells that share it."""
        stage = ONE_LORA_MKA if cell.method == ONE_LORA else MKA
        settings = self._with_tasks(self.study.with_seed(cell, self.seed))
        said = [stage.learning, *_of(settings, "adapters", "mka")]
        run = self._in_folder(settings, "mka", [said, self.run.data.mka.fingerprint])
        if run.workdir not in self._trained:
            learning = Job(run).train_mka(stage).learning
            self._trained[run.workdir] = {BASE: run.base.params, **learning}
        trees = self._trained[run.workdir]
        return {"trees": trees, "after": self._after_mka(run, cell, trees)}

    def _after_mka(self, run: Run, cell: Cell, trees: dict[str, Tree]) -> dict[str, Any]:
        """The scores of what DA keeps of MKA; made once for all cells that keep the same."""
        keeps_noise = cell.method == KEEP_NOISE
        components = MKA_COMPONENTS if keeps_noise else KNOWLEDGE_COMPONENTS
        asked = self._digest(*_of(run.settings, "evaluation"), self._tasks())
        path = run.workdir / f"after{'-with-noise' if keeps_noise else ''}-{asked}.json"
        if path not in self._scored:
            after = read_json(path)
            if after is None:
                kept = {name: trees[name] for name in (BASE, *components.ffn)}
                after = measures.task_scores(run, components, kept)
                if distributed.is_first():
                    write_json(path, after)
            self._scored[path] = after
        return self._scored[path]

    def _run_of(self, cell: Cell) -> Run:
        """The cell's run in its folder."""
        settings = self._with_tasks(self.study.with_seed(cell, self.seed))
        said = [cell.method, *_of(settings, "adapters", "mka", "da", "constraint", "evaluation")]
        data = [self.run.data.mka.fingerprint, self.run.data.da.fingerprint]
        return self._in_folder(settings, cell.name, [said, data, self._tasks()])

    def _tasks(self) -> str:
        """What is asked."""
        return repr([(task.name, task.items) for task in self.run.data.tasks])

    def _in_folder(self, settings: Settings, name: str, decided_by: list[Any]) -> Run:
        """A run of the seed's base and data whose folder is named by what decides its numbers."""
        base = [settings.base.dtype, self.run.base.digest]
        digest = self._digest(decided_by, *_of(settings, "data", "compute"), *base)
        folder = self.folder / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}-{digest}"
        return dataclasses.replace(self.run, settings=settings, workdir=folder)

    def _digest(self, *decided_by: Any) -> str:
        """A short name for what decides the numbers of the seed."""
        text = json.dumps([*decided_by, self.seed], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def _make_tasks(self) -> None:
        """Writes the tasks that are made for the seed, if the study has any."""
        facts, drawn = self.study.facts, self.study.drawn
        if drawn is not None:
            draw_tasks(self.folder / "data", drawn, seed=self.seed)
        elif facts.facts:
            write_fact_tasks(self.folder / "data", seed=self.seed, **dataclasses.asdict(facts))

    def _with_tasks(self, settings: Settings) -> Settings:
        """The settings with the files that are made for the seed, if the study has any."""
        if self.study.drawn is None and not self.study.facts.facts:
            return settings
        folder = self.folder / "data"
        first, second = (str(folder / f"{number}-stage" / "train.json") for number in (1, 2))
        return dataclasses.replace(
            settings,
            mka=dataclasses.replace(settings.mka, files=(first,)),
            da=dataclasses.replace(settings.da, files=(second,)),
            evaluation=dataclasses.replace(settings.evaluation, folder=str(folder / "test")),
        )


def _aligned(run: Run, cell: Cell, mka: dict[str, Any]) -> dict[str, Any]:
    """DA with an alignment module beside the knowledge."""
    job = Job(run)
    if cell.method == KEEP_NOISE:
        kept = dataclasses.replace(job.da.components, ffn=(KNOWLEDGE, NOISE, ALIGNMENT))
        job.da = dataclasses.replace(job.da, components=kept)
    start = hand_over(run, job.da, mka["trees"], job.key(job.da))
    trees = job.train_da(mka["trees"], start)
    return {
        "trees": trees,
        "after": measures.task_scores(run, job.da.components, trees),
        "leak": float(max_leak(trees[ALIGNMENT], start.basis)),
        "width": _mean_width(start.basis),
        "overlap": measures.overlap_with_knowledge({**trees, KNOWLEDGE: start.knowledge}),
    }


def _one_lora(run: Run, cell: Cell, mka: dict[str, Any]) -> dict[str, Any]:
    """The LoRA of MKA learns on."""
    del cell
    start = jax.tree.map(jnp.copy, mka["trees"][KNOWLEDGE])
    base = {BASE: run.base.params}
    state = Job(run).train(ONE_LORA_DA, run.settings.da, base, {KNOWLEDGE: start}, basis={})
    trees = {**base, KNOWLEDGE: state.learning[KNOWLEDGE]}
    return {
        "trees": trees,
        "after": measures.task_scores(run, ONE_LORA_DA.components, trees),
    }


def _geometry(run: Run, mka: dict[str, Any], trees: dict[str, Tree]) -> dict[str, Any]:
    """The angles of a free alignment, and what each basis would take of its effect."""
    job = Job(run)
    start = hand_over(run, job.da, mka["trees"], job.key(job.da))
    sums = covariance(run, job.da, mka["trees"])
    first, last, sums = (
        select(tree, FFN_PROJECTIONS) for tree in (start.alignment, trees[ALIGNMENT], sums)
    )
    return measures.geometry(first, last, start.knowledge, sums)


def _mean_width(basis: Tree) -> float:
    """Protected directions as a share of the space, over the leaves that have any."""
    shares = [
        float((jnp.square(q).sum(-2) > 0.5).sum(-1).mean()) / q.shape[-2]
        for q in jax.tree.leaves(basis)
        if q.shape[-1]
    ]
    return sum(shares) / len(shares) if shares else 0.0


def _of(settings: Settings, *sections: str) -> list[dict[str, Any]]:
    """Sections as plain values, without names of files: fingerprints stand for those."""
    return [
        {
            key: value
            for key, value in dataclasses.asdict(getattr(settings, section)).items()
            if key not in ("files", "folder")
        }
        for section in sections
    ]
