"""Workdirs made of foreign weights, from which `tools/medcare.py` goes on."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from medcare_jax import params as trees
from medcare_jax.checkpoints import Checkpoints
from medcare_jax.conversion.atomic import new_folder
from medcare_jax.conversion.sources import ATTENTION, Source
from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.files import write_json
from medcare_jax.orthogonality import extend_basis, max_leak
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, NOISE, Tree
from medcare_jax.run.context import Run
from medcare_jax.run.facts import run_facts
from medcare_jax.run.handover import hand_over
from medcare_jax.run.job import checked_mesh, open_run
from medcare_jax.run.progress import Display
from medcare_jax.settings import Settings
from medcare_jax.sharding import tree_shardings
from medcare_jax.training.optimizer import make_optimizer
from medcare_jax.training.stages import (
    MKA,
    Handover,
    Stage,
    alignment_stage,
    init_adapters,
    stage_key,
)
from medcare_jax.training.step import make_state

ROLES = (KNOWLEDGE, ALIGNMENT)
# The most that an alignment may reach into the knowledge where a run promises that it does not.
_LEAK = 1e-6


def adopt(
    source: Source,
    target: pathlib.Path,
    settings: Settings,
    *,
    role: str,
    resume_at: str,
    say: Callable[[str], None],
) -> None:
    """Makes a workdir from which a run with these settings goes on; whole or not at all.

    * A base alone: nothing is learned yet.
    * As `knowledge`, resumed at `mka`: MKA begins from the source's knowledge and noise.
    * As `knowledge`, resumed at `da`: MKA counts as done.
    * As `alignment`: MKA counts as done, with the source's knowledge if it has some, and DA begins
      from the source's alignment.

    What the source lacks (projections, ranks, noise) starts as in a new run, with B zero, so the
    function is the source's; of an MKA that counts as done it is zero, so that nothing which was
    never learned takes room from the alignment.

    Args:
      source: A base, a reference checkpoint or a PEFT adapter.
      target: The workdir; must not exist.
      settings: Of the run that will go on, with the same base.
      role: `knowledge` or `alignment`.
      resume_at: `mka` or `da`.
      say: Told what was made.

    Raises:
      ConversionError: Another base; adapters that do not fit the settings; an alignment that
        overlaps with the knowledge although the run projects.
      ValueError, OSError: What `job.checked_mesh` and `job.open_run` find wrong with base or data.
    """
    if role == ALIGNMENT and resume_at == MKA.name:
        raise ConversionError("an alignment is learned in DA; use --resume_at=da")
    mesh = checked_mesh(settings)
    with new_folder(target) as folder, jax.set_mesh(mesh):
        run = open_run(settings, folder, Display(is_shown=False), mesh)
        if run.base.digest != source.base.digest:
            raise ConversionError(
                f"config.base.path is {settings.base.path} with digest {run.base.digest}; the "
                f"source's base is {source.base.name} with {source.base.digest}"
            )
        write_json(folder / "config.json", dataclasses.asdict(settings))
        write_json(folder / "data_report.json", _data_report(run, target))
        if source.parts:
            _write_stages(run, source, role, resume_at)
    begins = "the first stage" if not source.parts else resume_at
    say(f"{target}: the run goes on with {begins} (tools/medcare.py with the same config)")


def _data_report(run: Run, target: pathlib.Path) -> dict[str, Any]:
    """What was read; the demo's files by the names that they have once the folder has its own."""
    draft, final = (json.dumps(str(path))[1:-1] for path in (run.workdir, target))
    report: dict[str, Any] = json.loads(json.dumps(run.data.report).replace(draft, final))
    return report


def _write_stages(run: Run, source: Source, role: str, resume_at: str) -> None:
    """The checkpoints that the job finds."""
    parts = dict(source.parts)
    if role == ALIGNMENT:
        # Of a PEFT adapter everything is the alignment; of stage 2 only what is called so.
        alignment = parts.pop(ALIGNMENT, None) or _together(parts.values())
        parts = parts if ALIGNMENT in source.parts else {}
    elif ALIGNMENT in parts:
        raise ConversionError(
            f"{source.name} has an alignment; go on from it with --as=alignment, or leave it out "
            "with --keep"
        )
    knowledge = _together(tree for part, tree in parts.items() if part in (ATTENTION, KNOWLEDGE))
    fresh = init_adapters(run.decoder(MKA.components), stage_key(run.settings.seed, MKA))
    is_done = resume_at != MKA.name
    canvas = jax.tree.map(jnp.zeros_like, fresh[KNOWLEDGE]) if is_done else fresh[KNOWLEDGE]
    learning = {
        KNOWLEDGE: _fit(source, knowledge, canvas, run.settings),
        NOISE: _fit_noise(source, fresh[NOISE], run.settings),
    }
    _save(run, MKA, learning, basis={}, is_done=is_done)
    if role == ALIGNMENT:
        stage = alignment_stage(run.settings.adapters, run.settings.constraint)
        start = _handover(run, stage, learning[KNOWLEDGE])
        adopted = _fit(source, alignment, start.alignment, run.settings)
        _check_leak(run, adopted, start)
        everything = {KNOWLEDGE: start.knowledge, ALIGNMENT: adopted}
        known = trees.digest(learning[KNOWLEDGE])
        learning = {name: everything[name] for name in stage.learning}
        basis = extend_basis({ALIGNMENT: start.basis}, learning)
        _save(run, stage, learning, basis=basis, is_done=False, known=known)


def _handover(run: Run, stage: Stage, knowledge: Tree) -> Handover:
    """What DA would begin with after this knowledge."""
    ended = {BASE: run.base.params, KNOWLEDGE: knowledge}
    return hand_over(run, stage, ended, stage_key(run.settings.seed, stage))


def _save(
    run: Run,
    stage: Stage,
    learning: dict[str, Tree],
    *,
    basis: dict[str, Tree],
    is_done: bool,
    known: str | None = None,
) -> None:
    """One checkpoint: of the stage's last step if it counts as done, else of step 0."""
    settings, batches = getattr(run.settings, stage.name), getattr(run.data, stage.name)
    constraint = run.settings.constraint if basis else None
    total = min(settings.max_steps or batches.num_batches, batches.num_batches)
    optimizer = make_optimizer(settings, total, constraint=constraint)
    step = total if is_done else 0
    state = make_state(learning, optimizer, stage_key(run.settings.seed, stage), basis)
    state = state._replace(step=jnp.asarray(step, jnp.int32))
    meta = run_facts(
        run.settings,
        settings,
        constraint,
        base_digest=run.base.digest,
        fingerprint=batches.fingerprint,
        steps=total,
        knowledge_digest=known,
    )
    folder = run.workdir / stage.name
    with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(step, jax.device_put(state, tree_shardings(run.mesh, state)), meta)
    (folder / "metrics.jsonl").touch()


def _fit(source: Source, tree: Tree, canvas: Tree, settings: Settings) -> Tree:
    """The canvas with a source's factors in its first ranks, B zero in all others."""
    found, result = trees.flatten(tree), {}
    leaves = trees.flatten(canvas)
    owners = {path.rpartition("/")[0] for path in leaves}
    strangers = sorted({path.rpartition("/")[0] for path in found} - owners)
    if strangers:
        raise ConversionError(
            f"{source.name} adapts {', '.join(strangers)}, which the run's module does not (an "
            "alignment of the attention needs adapters.alignment_on_attention=True)"
        )
    for path, blank in leaves.items():
        owner, _, name = path.rpartition("/")
        axis = blank.ndim - 1 if name == "lora_a" else blank.ndim - 2
        values = jnp.zeros_like(blank) if name == "lora_b" else blank
        if path in found:
            part = jnp.asarray(found[path])
            if name == "lora_b":
                part = part * jnp.float32(_scale(source, owner) / settings.adapters.scale)
            _check_rank(source, path, part.shape, blank.shape, axis)
            values = jax.lax.dynamic_update_slice_in_dim(values, part, 0, axis)
        result[path] = values
    return trees.unflatten(result)


def _fit_noise(source: Source, fresh: Tree, settings: Settings) -> Tree:
    """The source's noise, which must be of the run's sizes; a fresh one if it has none."""
    if NOISE not in source.parts:
        return fresh
    ours, theirs = settings.adapters, source.adapters
    names = ("rank", "experts", "experts_per_token")
    wrong = [
        f"adapters.{name} = {getattr(ours, name)}, the source {getattr(theirs, name)}"
        for name in names
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if wrong or ours.scale != theirs.scale:
        scales = f"scale {ours.scale}, the source {theirs.scale}"
        raise ConversionError(f"the noise does not fit the run: {'; '.join([*wrong, scales])}")
    return source.parts[NOISE]


def _check_rank(
    source: Source, path: str, found: tuple[int, ...], room: tuple[int, ...], axis: int
) -> None:
    """Raises if factors have more ranks than the run's module, or other widths."""
    if any(f != r for at, (f, r) in enumerate(zip(found, room, strict=True)) if at != axis):
        raise ConversionError(f"{path} of {source.name} is {list(found)}, the run's {list(room)}")
    if found[axis] > room[axis]:
        raise ConversionError(
            f"{path} of {source.name} has rank {found[axis]}, the run's module {room[axis]}; raise "
            "adapters.rank (FFN modules have adapters.rank x adapters.shared_experts)"
        )


def _check_leak(run: Run, alignment: Tree, start: Handover) -> None:
    """Raises if the run promises orthogonality and the adopted alignment has it not."""
    if not run.settings.constraint.is_exact:
        return
    found = float(max_leak(alignment, start.basis))
    if not found <= _LEAK:  # nor may it be NaN
        raise ConversionError(
            f"the alignment reaches into the knowledge's subspace (leak {found:.1e}, at most "
            f"{_LEAK:.0e}), and projecting its updates would not bring it out. Go on with "
            "constraint.kind=penalty or none, or begin a new alignment with --as=knowledge"
        )


def _scale(source: Source, owner: str) -> float:
    """What a projection's product is multiplied by in the source."""
    return source.adapters.scale if source.scales is None else source.scales[owner]


def _together(parts: Iterable[Tree]) -> Tree:
    """Trees of different projections as one."""
    flat: dict[str, Any] = {}
    for tree in parts:
        flat |= trees.flatten(tree)
    return trees.unflatten(flat)
