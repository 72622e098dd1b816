"""The model of a workdir, at any step of either stage, without its data and without training."""

import dataclasses
import json
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from medcare_jax.checkpoints import MANIFEST, CheckpointError, find_fault, steps_in
from medcare_jax.conversion import bases
from medcare_jax.files import read_json
from medcare_jax.models.aggregators import (
    ATTENTION_PROJECTIONS,
    FFN_PROJECTIONS,
    MKA_COMPONENTS,
    Components,
)
from medcare_jax.models.folding import fold
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, Tree, digest, merge, unflatten
from medcare_jax.run.facts import KNOWLEDGE_DIGEST
from medcare_jax.run.workdir import WorkdirError
from medcare_jax.settings import BaseSettings, MeshSettings, Settings, make_settings
from medcare_jax.sharding import make_mesh, path_name, sharding_for
from medcare_jax.training.stages import MKA, alignment_stage, select

STAGES = ("mka", "da")
ATTENTION = "attention"
_LEARNING, _BASIS = "learning.", "basis."


class RunAdapters(NamedTuple):
    """What a run had learned at some step, without its base.

    Attributes:
      settings: Of the run.
      stage: `mka` or `da`.
      step: Optimiser steps of the stage that were done.
      trees: `knowledge` and `noise` of mka. Of da `attention` (what is merged into the base),
        `knowledge` (of the FFN) and `alignment`. Float32, on the first device.
      base_digest: Of the base that they were learned on.
    """

    settings: Settings
    stage: str
    step: int
    trees: dict[str, Tree]
    base_digest: str

    @property
    def components(self) -> Components:
        """The adapters that a decoder of the stage has."""
        s = self.settings
        is_mka = self.stage == MKA.name
        return MKA_COMPONENTS if is_mka else alignment_stage(s.adapters, s.constraint).components


class RunModel(NamedTuple):
    """A run's model, whole.

    Attributes:
      settings: Of the run.
      base: Its base as it was named, with tokenizer.
      trees: By component; `base` is the stage's own (in da with the attention merged), then
        `knowledge` and `noise` (mka) or `knowledge` and `alignment` (da). `params.merge(trees)`
        gives a decoder's parameters.
    """

    settings: Settings
    base: bases.Base
    trees: dict[str, Tree]


def open_model(
    workdir: pathlib.Path,
    *,
    stage: str | None = "da",
    step: int | None = None,
    mesh: Mesh | None = None,
) -> RunModel:
    """The model that a workdir holds.

    Args:
      workdir: Of `run/job.py`; another process may be at work there.
      stage: `mka`, `da`, or None for the latest that has a checkpoint.
      step: Of the stage; by default its newest good checkpoint.
      mesh: Where the base goes; by default the first device.

    Raises:
      WorkdirError: Not the folder of a run.
      CheckpointError: No such checkpoint, a damaged one, or a base with another digest.
      SettingsError, ConversionError, FileNotFoundError: The base cannot be read.
    """
    found = read_adapters(workdir, stage=stage, step=step)
    settings = found.settings
    mesh = mesh or make_mesh(MeshSettings(fsdp=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        base = bases.load(base_of(found), mesh, seed=settings.seed)
        check_base(found, base.digest)
        trees = {name: _place(tree, mesh) for name, tree in found.trees.items()}
        params = base.params
        if attention := trees.pop(ATTENTION, None):
            params = fold(merge({BASE: params, KNOWLEDGE: attention}), settings.adapters)
    return RunModel(settings, base, {BASE: params, **trees})


def read_adapters(
    workdir: pathlib.Path, *, stage: str | None = "da", step: int | None = None
) -> RunAdapters:
    """What a workdir's run had learned; reads no base. Arguments and errors as `open_model`."""
    workdir = pathlib.Path(workdir)
    config = read_json(workdir / "config.json")
    if config is None:
        raise WorkdirError(f"{workdir} is not the folder of a run: it has no config.json")
    settings = make_settings(config)
    stage = stage or next((name for name in reversed(STAGES) if _is_begun(workdir, name)), "mka")
    if stage not in STAGES:
        raise WorkdirError(f"stage {stage!r}; a run has {' and '.join(STAGES)}")
    learned = _read(workdir, stage, step)
    trees = dict(learned.trees)
    if stage != MKA.name:
        # What MKA ended with: DA merged its attention, and began with the rest of it.
        last = _read_last_of_mka(workdir)
        _check_same_run(workdir, last, learned)
        trees[ATTENTION] = select(last.trees[KNOWLEDGE], ATTENTION_PROJECTIONS)
        trees.setdefault(KNOWLEDGE, select(last.trees[KNOWLEDGE], FFN_PROJECTIONS))
    _check_settings(workdir, settings, learned.facts)
    return RunAdapters(settings, stage, learned.step, trees, learned.facts["base.digest"])


def read_basis(workdir: pathlib.Path, stage: str) -> Tree | None:
    """The alignment's basis in the newest good checkpoint of a stage; None if there is none.

    NumPy arrays, without the leaves of width 0; of a stage without a constraint these are all.
    """
    try:
        return jax.device_get(_read(workdir, stage, None, _BASIS).trees.get(ALIGNMENT))
    except CheckpointError:
        return None


def read_facts(workdir: pathlib.Path, stage: str) -> Mapping[str, Any] | None:
    """What the newest good checkpoint of a stage remembers of its run; None if there is none."""
    try:
        facts: Mapping[str, Any] = _saved(_find(workdir, stage, None))["meta"]
    except CheckpointError:
        return None
    return facts


def base_of(found: RunAdapters) -> BaseSettings:
    """The base that a run names, which is looked for before anything is read of it.

    Raises:
      FileNotFoundError: It is not there. A relative path may only be so from this folder.
    """
    named = found.settings.base
    if named.path in (bases.EMBEDDED, bases.RANDOM):
        return named
    try:
        path = bases.locate(named)
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there")
    except FileNotFoundError as error:
        if pathlib.Path(named.path).is_absolute():
            raise
        raise FileNotFoundError(
            f"{error}. The run's config.json has it as base.path = {named.path!r}: a relative path "
            f"is looked for from the current folder, {pathlib.Path.cwd()}. Go to the folder that "
            "the run was started in, or write the whole path into config.json"
        ) from None
    return named


def check_base(found: RunAdapters, digest: str) -> None:
    """Raises unless a base has the digest that the adapters were learned on.

    Raises:
      CheckpointError: Another digest; names both.
    """
    if digest != found.base_digest:
        raise CheckpointError(
            f"the base {found.settings.base.path} has digest {digest}, the adapters were learned "
            f"on {found.base_digest}; put the base of the run back"
        )


class _Learned(NamedTuple):
    """The learning trees of one checkpoint, or those of its basis."""

    step: int
    trees: dict[str, Tree]
    facts: Mapping[str, Any]


def _check_same_run(workdir: pathlib.Path, mka: _Learned, da: _Learned) -> None:
    """Raises unless DA was trained on the base of this MKA and beside what it ended with."""
    known = digest(mka.trees[KNOWLEDGE])
    for what, ours, theirs in (
        ("base", mka.facts["base.digest"], da.facts["base.digest"]),
        ("knowledge", known, da.facts.get(KNOWLEDGE_DIGEST)),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"{workdir}: mka and da are not of one run: the {what} of mka has digest {ours}, "
                f"da was trained on {theirs}. Put the checkpoints of the one or the other back, or "
                "take the folder da away and train it anew"
            )


def _check_settings(workdir: pathlib.Path, settings: Settings, facts: Mapping[str, Any]) -> None:
    """Raises if `config.json` no longer says how the adapters were trained."""
    said = {f"adapters.{name}": now for name, now in dataclasses.asdict(settings.adapters).items()}
    # Checkpoints of earlier builds say nothing of the dtype; config.json alone remembers theirs.
    said |= {"base.dtype": settings.base.dtype} if "base.dtype" in facts else {}
    if unknown := sorted(said.keys() - facts.keys()):
        raise CheckpointError(
            f"{workdir}: the checkpoint says nothing of {', '.join(unknown)}; an earlier build "
            "wrote it, which can read it"
        )
    changed = [
        f"{name} was {facts[name]!r}, config.json says {now!r}"
        for name, now in said.items()
        if facts[name] != now
    ]
    if changed:
        raise CheckpointError(f"{workdir}: config.json was changed: {'; '.join(changed)}")


def _is_begun(workdir: pathlib.Path, stage: str) -> bool:
    """Whether a stage has a checkpoint that was signed; its first may just be on its way."""
    return any((workdir / stage / "checkpoints").glob(f"[0-9]*/{MANIFEST}"))


def _steps(workdir: pathlib.Path, stage: str) -> list[int]:
    """Steps of a stage's checkpoints, newest first."""
    return steps_in(workdir / stage / "checkpoints")[::-1]


def _read(workdir: pathlib.Path, stage: str, step: int | None, part: str = _LEARNING) -> _Learned:
    """One part of the checkpoint of a step, or of the newest that matches its manifest."""
    return _read_trees(_find(workdir, stage, step), part)


def _find(workdir: pathlib.Path, stage: str, step: int | None) -> pathlib.Path:
    """The folder of the checkpoint of a step, or of the newest that matches its manifest."""
    steps = _steps(workdir, stage)
    folder = workdir / stage / "checkpoints"
    if step is not None and step not in steps:
        there = ", ".join(map(str, reversed(steps))) or "none"
        raise CheckpointError(f"{folder} has no checkpoint of step {step}; it has {there}")
    faults = []
    for each in steps if step is None else [step]:
        fault = find_fault(folder / str(each))
        if fault is None:
            return folder / str(each)
        faults.append(f"step {each}: {fault}")
        logging.getLogger(__name__).warning("checkpoint of %s is not used: %s", stage, faults[-1])
    raise CheckpointError(
        f"{folder} has no good checkpoint" + (": " + "; ".join(faults) if faults else "")
    )


def _saved(folder: pathlib.Path) -> dict[str, Any]:
    """What stands beside the state of a checkpoint: `meta` and the table of `leaves`."""
    content: dict[str, Any] = json.loads((folder / "meta" / "metadata").read_text())
    return content


def _read_last_of_mka(workdir: pathlib.Path) -> _Learned:
    """The checkpoint with which MKA ended."""
    last = _read(workdir, MKA.name, None)
    total = last.facts["stage.steps"]
    if last.step != total:
        raise CheckpointError(
            f"{workdir / MKA.name}: DA began after step {total} of MKA, but the newest good "
            f"checkpoint is of step {last.step}"
        )
    return last


def _read_trees(folder: pathlib.Path, part: str) -> _Learned:
    """The trees of one part of the state, and the facts saved beside it."""
    saved, step = _saved(folder), int(folder.name)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        path: jax.ShapeDtypeStruct(*_shape(text), sharding=device)
        for path, text in saved["leaves"].items()
        if path.startswith(part) and 0 not in _shape(text)[0]  # those are not stored
    }
    if not wanted:  # which Orbax cannot be asked for
        return _Learned(step, {}, saved["meta"])
    restore = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.restore((folder / "state").absolute(), args=restore)
    leaves = {path.removeprefix(part).replace(".", "/"): stored[path] for path in wanted}
    return _Learned(step, dict(unflatten(leaves)), saved["meta"])


def _shape(text: str) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of a row of the table of leaves, such as `float32[3, 48, 4]`."""
    match = re.fullmatch(r"(\w+)\[([\d, ]*)\]", text)
    if match is None:
        raise CheckpointError(f"the checkpoint's table of leaves holds {text!r}")
    return tuple(int(size) for size in match[2].split(",") if size), jnp.dtype(match[1])


def _place(tree: Tree, mesh: Mesh) -> Tree:
    """An adapter tree on the mesh."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(leaf, sharding_for(mesh, path_name(path), leaf.shape)),
        tree,
    )
