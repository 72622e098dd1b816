"""The two-stage job: base evaluation, MKA, hand-over, DA, evaluation, export, report.

Each part leaves its result in the workdir, whole or not at all, so the same command goes on where
the last one stopped:

    WORKDIR/config.json               the settings of the run
    WORKDIR/data_report.json          what was read, left out, and found in the test data
    WORKDIR/evaluation/STAGE.json     scores of base, mka and da
    WORKDIR/{mka,da}/checkpoints/     see checkpoints.py
    WORKDIR/{mka,da}/metrics.jsonl    one line per step
    WORKDIR/{mka,da}/skipped.jsonl    records of steps that were left out, if there are any
    WORKDIR/export/                   the finished model as a Hugging Face folder
    WORKDIR/report.{md,html}          what came of it
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medcare_jax import distributed
from medcare_jax.agreement import check_same, first_says, together
from medcare_jax.conversion.bases import load
from medcare_jax.files import naming_full_disk, write_json
from medcare_jax.models.aggregators import KNOWLEDGE_COMPONENTS, NO_ADAPTERS, Components
from medcare_jax.orthogonality import closed_share, extend_basis
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, NOISE, Tree, digest
from medcare_jax.run import outputs
from medcare_jax.run.context import Run
from medcare_jax.run.data import check_files, open_data, total_steps
from medcare_jax.run.facts import KNOWLEDGE_DIGEST, run_facts
from medcare_jax.run.handover import check_host, hand_over
from medcare_jax.run.progress import Display
from medcare_jax.run.restore import read_facts
from medcare_jax.run.workdir import hold
from medcare_jax.settings import ConstraintSettings, Settings, StageSettings
from medcare_jax.sharding import check_replicated, check_rows, make_mesh, tree_shardings
from medcare_jax.training.loop import StageRun, run_stage
from medcare_jax.training.optimizer import make_optimizer, make_schedule
from medcare_jax.training.resume import refuse_changes
from medcare_jax.training.stages import (
    MKA,
    Handover,
    Stage,
    alignment_stage,
    init_adapters,
    stage_key,
)
from medcare_jax.training.step import TrainState, make_state, make_train_step, penalty_of

BASE_STAGE = "base"


class ConstraintError(ValueError):
    """The constraint that was asked for has no effect."""


def run_job(settings: Settings, workdir: pathlib.Path, display: Display) -> None:
    """Runs whatever of the job is not done yet in the workdir.

    Raises:
      WorkdirError: Another run is at work there, or the hosts do not share it.
      ShardingError: The mesh does not fit the devices, the batch or the model.
      PeerError: Another process found one of these.
      CheckpointError: The workdir holds a run with settings that must not change.
      DiskFullError: The workdir's disk filled up; what was whole before still is.
      StoppedEarly: The process was told to end; the same command goes on.
      ValueError, OSError: What was given cannot be used; the message says what to do.
    """
    with together():
        mesh = checked_mesh(settings)
    check_same("the config", repr(settings))
    with naming_full_disk(workdir), hold(workdir), jax.set_mesh(mesh):
        display.line(_hardware(mesh))
        Job(open_run(settings, workdir, display, mesh)).run_all()
        first_says(True)  # nobody leaves before the first has written everything


def checked_mesh(settings: Settings) -> Mesh:
    """The mesh of a run; raises for what the run would meet on it after hours."""
    mesh = make_mesh(settings.mesh)
    check_rows(mesh, rows=settings.data.rows, accumulation=settings.data.accumulation)
    check_host(settings.constraint)
    return mesh


def open_run(settings: Settings, workdir: pathlib.Path, display: Display, mesh: Mesh) -> Run:
    """Reads base and data; the mesh that they go onto must be set."""
    display.headline("base and data")
    with together():
        check_files(settings)
    base = load(settings.base, mesh, seed=settings.seed)
    display.line(f"base: {base.name}, {base.settings.num_layers} layers")
    data = open_data(settings, base.tokenizer, workdir, show_progress=display.is_live)
    display.line(outputs.data_summary(data))
    for warning in (
        *outputs.data_warnings(data),
        *outputs.context_warnings(data, base.settings.max_position_embeddings),
        *outputs.settings_warnings(settings),
    ):
        display.line(f"WARNING: {warning}")
    return Run(settings, workdir, display, mesh, base, data)


class Job:
    """The parts of a run; `run_all` says in which order."""

    def __init__(self, run: Run) -> None:
        """A job of an opened run."""
        self.run = run
        self.da = alignment_stage(run.settings.adapters, run.settings.constraint)

    def run_all(self) -> None:
        """All parts; each skips what an earlier run of the same command has done."""
        trees = {BASE: self.run.base.params}
        # What each state of the model is made of; its base is never read back for a digest.
        weights = f"{self.run.base.digest} {self.run.settings.base.dtype}"
        self._check_resume()
        self._write_records()
        self.score(BASE_STAGE, NO_ADAPTERS, trees, weights)
        trees[KNOWLEDGE] = self.train_mka().learning[KNOWLEDGE]
        weights += f" {digest(trees[KNOWLEDGE])}"
        self.score(MKA.name, KNOWLEDGE_COMPONENTS, trees, weights)
        trees = self.train_da(trees)
        weights += f" {digest({name: tree for name, tree in trees.items() if name != BASE})}"
        self.score(self.da.name, self.da.components, trees, weights)
        self.run.display.headline("export and report")
        outputs.export(self.run, trees, weights=weights)
        if distributed.is_first():
            outputs.report(self.run)

    def train_mka(self, stage: Stage = MKA) -> TrainState:
        """Miscellaneous Knowledge Aggregation: knowledge and noise learn."""
        self.run.display.headline(f"MKA: {' and '.join(stage.learning)} learn")
        make = functools.partial(init_adapters, self.run.decoder(stage.components))
        places = tree_shardings(self.run.mesh, jax.eval_shape(make, self.key(stage)))
        learning = jax.jit(make, out_shardings=places)(self.key(stage))
        return self.train(
            stage, self.run.settings.mka, {BASE: self.run.base.params}, learning, basis={}
        )

    def train_da(self, trees: dict[str, Tree], start: Handover | None = None) -> dict[str, Tree]:
        """The hand-over, then Downstream Alignment; returns the trees of the finished model.

        Who has made the hand-over already gives it as `start`.
        """
        constraint, keeps_noise = self.run.settings.constraint, NOISE in self.da.components.ffn
        noise = "kept" if keeps_noise else "dropped"
        self.run.display.headline(f"DA: noise {noise}, attention merged, the alignment learns")
        start = start or hand_over(self.run, self.da, trees, self.key(self.da))
        everything = {BASE: start.base, KNOWLEDGE: start.knowledge, ALIGNMENT: start.alignment}
        if keeps_noise:
            everything[NOISE] = trees[NOISE]
        if constraint.is_exact:
            self._tell_room(start.basis)
        if constraint.use_penalty and not constraint.use_projection:
            check_penalty(constraint, everything, {ALIGNMENT: start.basis})
        learning = {name: everything[name] for name in self.da.learning}
        frozen = {name: tree for name, tree in everything.items() if name not in learning}
        basis = extend_basis({ALIGNMENT: start.basis}, learning)
        # Training gives its state away; knowledge that learns on and `start` are the caller's too.
        learning, basis = jax.tree.map(jnp.copy, (learning, basis))
        known = digest(trees[KNOWLEDGE])
        state = self.train(self.da, self.run.settings.da, frozen, learning, basis, known)
        return {**frozen, **state.learning}

    def _tell_room(self, basis: Tree) -> None:
        """Says, or refuses, that matrices of the alignment cannot learn."""
        closed = float(closed_share(basis))
        if closed == 1:
            raise ConstraintError(
                "the whole space of each matrix of the alignment is protected, so that DA would "
                "learn nothing; lower constraint.energy, or adapters.rank if the basis is 'span'"
            )
        if closed:
            self.run.display.line(
                f"WARNING: the whole space of {closed:.0%} of the alignment's matrices is "
                "protected, so that these learn nothing; lower constraint.energy"
            )

    def score(
        self, name: str, components: Components, trees: dict[str, Tree], weights: str
    ) -> None:
        """Evaluates a state of the model, unless its scores are there already."""
        if self.run.data.tasks:
            self.run.display.headline(f"evaluation: {name}")
            outputs.score(self.run, name, components, trees, weights=weights)

    def _check_resume(self) -> None:
        """Refuses what a stage would refuse when it begins, before anything is scored or written.

        Raises:
          CheckpointError: A fact of a stage's newest checkpoint changed that must not.
        """
        with together():
            for stage in (MKA, self.da) if distributed.is_first() else ():
                saved = read_facts(self.run.workdir, stage.name)
                if saved is not None:
                    # What MKA ends with is compared when it has ended.
                    saved = {name: x for name, x in saved.items() if name != KNOWLEDGE_DIGEST}
                    constraint = None if stage is MKA else self.run.settings.constraint
                    refuse_changes(saved, self._facts(stage, constraint))

    def _write_records(self) -> None:
        """What was asked for and found; of a run that goes on, with what may change on resume."""
        if distributed.is_first():
            write_json(self.run.workdir / "config.json", dataclasses.asdict(self.run.settings))
            write_json(self.run.workdir / "data_report.json", self.run.data.report)

    def _facts(
        self, stage: Stage, constraint: ConstraintSettings | None, known: str | None = None
    ) -> dict[str, Any]:
        """What the checkpoints of a stage remember of this run."""
        recipe = getattr(self.run.settings, stage.name)
        batches = getattr(self.run.data, stage.name)
        return run_facts(
            self.run.settings,
            recipe,
            constraint,
            base_digest=self.run.base.digest,
            fingerprint=batches.fingerprint,
            steps=total_steps(recipe, batches),
            knowledge_digest=known,
        )

    def key(self, stage: Stage) -> jax.Array:
        """The root of a stage's randomness."""
        return stage_key(self.run.settings.seed, stage)

    def train(
        self,
        stage: Stage,
        recipe: StageSettings,
        frozen: dict[str, Tree],
        learning: dict[str, Tree],
        basis: dict[str, Tree],
        known: str | None = None,
    ) -> TrainState:
        """Runs a stage to its end; `known` is the digest of the knowledge that it stands on."""
        s, batches = self.run.settings, getattr(self.run.data, stage.name)
        constraint = s.constraint if basis else None
        total = total_steps(recipe, batches)
        optimizer = make_optimizer(recipe, total, constraint=constraint)
        step = make_train_step(
            self.run.decoder(stage.components),
            optimizer,
            constraint,
            accumulation=s.data.accumulation,
            loss_chunk=s.compute.loss_chunk,
        )
        stage_run = StageRun(
            folder=self.run.workdir / stage.name,
            step=step,
            schedule=make_schedule(recipe, total),
            frozen=frozen,
            batches=batches,
            total_steps=total,
            every_steps=s.checkpoint.every_steps,
            keep=s.checkpoint.keep,
            grace_seconds=s.checkpoint.grace_seconds,
            max_skipped=recipe.max_skipped,
            meta=self._facts(stage, constraint, known),
        )
        state = make_state(learning, optimizer, self.key(stage), basis)
        check_replicated(self.run.mesh, (frozen, state), budget_mib=s.mesh.replicated_budget_mib)
        with self.run.display.bar(stage.name, total) as bar:
            return run_stage(stage_run, state, self.run.mesh, bar)


def _hardware(mesh: Mesh) -> str:
    """One line on what the run has."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    processes = jax.process_count()
    return (
        f"{mesh.size} x {jax.devices()[0].device_kind} in {processes} "
        f"process{'' if processes == 1 else 'es'}, mesh {axes}"
    )


def check_penalty(
    constraint: ConstraintSettings, trees: dict[str, Tree], basis: dict[str, Tree]
) -> None:
    """Raises if the penalty has no gradient, as in the published recipe.

    Looked at beside the start and not in it, where B is zero and |B_K B_O^T| has no slope yet.

    Raises:
      ConstraintError: Its gradient with respect to the alignment is zero everywhere.
    """

    def penalty(alignment: Tree) -> jax.Array:
        return penalty_of(constraint, {**trees, ALIGNMENT: alignment}, basis)

    slopes = jax.grad(penalty)(jax.tree.map(lambda leaf: leaf + 1, trees[ALIGNMENT]))
    if not any(bool(abs(slope).max() > 0) for slope in jax.tree.leaves(slopes) if slope.size):
        raise ConstraintError(
            "the penalty's gradient is zero at the start of DA, so it would do nothing; "
            "expected a norm above 0. Is the knowledge all zeros?"
        )
