"""Checkpoints that are whole, verified and never trusted unread.

Orbax writes them, in the background, and commits each folder at once. It does not notice a
flipped bit when it reads, so every finished checkpoint is signed: `manifest.json` holds the
sha256 of each of its files, and a checkpoint without a matching manifest is set aside by name,
never used. The newest good one is taken.

    FOLDER/120/{state/, meta/, manifest.json}      a checkpoint after step 120
    FOLDER/rejected/{120, 120.2}/                  those that did not match their manifest
"""

import json
import logging
import pathlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from medcare_jax.agreement import check_same, together
from medcare_jax.files import file_digest, write_json
from medcare_jax.rejected import set_aside
from medcare_jax.sharding import path_name

MANIFEST = "manifest.json"
_STEP = re.compile(r"0|[1-9][0-9]*")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used for this run; the message says what differs."""


class Restored(NamedTuple):
    """A checkpoint read back.

    Attributes:
      step: Optimiser steps done when it was saved.
      state: The tree, placed as the abstract one asked.
      meta: What was saved beside it.
    """

    step: int
    state: Any
    meta: dict[str, Any]


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its own look at preemption, which would spoil `must_stop`'s count."""

    def reached_preemption(self, step: int) -> bool:
        """False: when to save is the training loop's to decide."""
        del step
        return False


class Checkpoints:
    """The checkpoints of one stage, in one folder.

    Use as a context manager: leaving it waits for what is being written.

    Attributes:
      rejected: What was set aside when the folder was opened, and why.
      seconds: What the last save took, its signature included; None before the first.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int) -> None:
        """Opens the folder, making it if need be; `keep` newest checkpoints stay."""
        self._folder = pathlib.Path(folder).absolute()
        self._unsigned: set[int] = set()
        self._began = self._written = 0.0
        self.seconds: float | None = None
        self.rejected: list[str] = []
        with together():  # the others must not look before the bad ones are gone
            if jax.process_index() == 0:
                self._folder.mkdir(parents=True, exist_ok=True)
                self.rejected += _set_aside_bad(self._folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            create=False,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._note_written),
        )
        self._manager = _Manager(self._folder, options=options)
        check_same(f"the newest checkpoint in {self._folder}", str(self.latest_step()))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Begins to save; the state may be donated as soon as this returns.

        Args:
          step: Optimiser steps done.
          state: A tree of arrays; leaves of size 0 are not written and come back as zeros.
          meta: JSON-able facts to be saved with it.
        """
        leaves = _flat(state)
        facts = {"meta": dict(meta), "leaves": _leaf_table(leaves), "step": step}
        stored = {path: leaf for path, leaf in leaves.items() if leaf.size}
        self.wait()
        self._began = time.monotonic()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(stored), meta=ocp.args.JsonSave(facts)
            ),
        )
        self._unsigned.add(step)

    def sign_finished(self) -> None:
        """Signs what has been written since the last call; costs nothing while saving goes on."""
        if self._unsigned and not self._manager.is_saving_in_progress():
            self._manager.check_for_errors()
            written = max(0.0, self._written - self._began)
            begun = time.monotonic()
            for step in sorted(self._unsigned):
                if jax.process_index() == 0 and (self._folder / str(step)).is_dir():
                    sign(self._folder / str(step))
            self._unsigned.clear()
            self.seconds = written + time.monotonic() - begun

    def _note_written(self) -> None:
        """Called by Orbax's own thread; `sign_finished` comes by a step later."""
        self._written = time.monotonic()

    def wait(self) -> None:
        """Returns when everything is on disk and signed.

        Raises:
          OSError: Writing failed, for one because the disk is full.
        """
        self._manager.wait_until_finished()
        self.sign_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        self.wait()
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest good checkpoint's step, or None."""
        return self._manager.latest_step()

    def restore(self, abstract: Any) -> Restored | None:
        """Reads the newest good checkpoint, or returns None if there is none.

        Args:
          abstract: A tree of `jax.ShapeDtypeStruct` with shardings, like the state wanted.

        Raises:
          CheckpointError: Leaves are missing, extra, or of another shape or dtype.
        """
        step = self.latest_step()
        if step is None:
            return None
        leaves = _flat(abstract)
        wanted = {path: leaf for path, leaf in leaves.items() if leaf.size}
        facts = self.read_meta(step)
        _check_leaves(facts["leaves"], _leaf_table(leaves), self._folder / str(step))
        stored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        )["state"]
        return Restored(step, _unflat(abstract, stored), facts["meta"])

    def read_meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of a step: `meta` and the table of `leaves`."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]


def sign(folder: pathlib.Path) -> None:
    """Writes the manifest of a finished checkpoint folder, at once or not at all."""
    write_json(folder / MANIFEST, file_digests(folder))


def file_digests(folder: pathlib.Path) -> dict[str, str]:
    """The sha256 of every file below a folder but its manifest, by relative path."""
    own = (folder / MANIFEST, folder / f".{MANIFEST}.part")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in own)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def find_fault(folder: pathlib.Path) -> str | None:
    """Why a checkpoint folder must not be used, or None if it matches its manifest."""
    manifest = folder / MANIFEST
    if folder.is_symlink() or not _STEP.fullmatch(folder.name):
        return "expected a folder, no link, whose name is the number of a step"
    if not manifest.is_file():
        return "it was never signed: the run ended while it was being written"
    try:
        expected = json.loads(manifest.read_text())
    except (ValueError, RecursionError):
        return f"{MANIFEST} is not JSON"
    if not isinstance(expected, dict):
        return f"{MANIFEST} is not a table of digests"
    for path in sorted(folder.rglob("*")):  # tensorstore would follow a link out of the folder
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            return f"{path.relative_to(folder)} is neither a file nor a folder"
    found = file_digests(folder)
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            kind = (
                "is missing"
                if path not in found
                else "is not in the manifest"
                if path not in expected
                else "does not match its sha256"
            )
            return f"{path} {kind}"
    try:
        saved = int(json.loads((folder / "meta" / "metadata").read_text())["step"])
    except (FileNotFoundError, KeyError, TypeError, ValueError, RecursionError):
        return "it does not say after which step it was saved"
    return None if saved == int(folder.name) else f"it was saved after step {saved}"


def steps_in(folder: pathlib.Path) -> list[int]:
    """The steps that have a folder there, good or not, in order; none if there is no folder."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if _STEP.fullmatch(name))


def _set_aside_bad(folder: pathlib.Path) -> Iterator[str]:
    """Moves unsigned and damaged checkpoints out of the way; says which and why."""
    for path in sorted(path for path in folder.iterdir() if path.name.isdigit()):
        fault = find_fault(path)
        if fault is None:
            continue
        target = set_aside(path, folder / "rejected" / path.name)
        message = f"checkpoint {path} is not used: {fault}; moved to {target}"
        logging.getLogger(__name__).warning(message)
        yield message


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path, which is what Orbax may use for file names."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path).replace("/", "."): leaf for path, leaf in pairs}


def _unflat(abstract: Any, stored: Mapping[str, Any]) -> Any:
    """The tree of the stored leaves, with zeros of size 0 where nothing was stored."""

    def leaf(path: tuple[Any, ...], like: Any) -> Any:
        name = path_name(path).replace("/", ".")
        if name in stored:
            return stored[name]
        return jax.device_put(jnp.zeros(like.shape, like.dtype), like.sharding)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def _leaf_table(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Dtype and shape of each leaf, as text."""
    return {path: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for path, leaf in leaves.items()}


def _check_leaves(
    saved: Mapping[str, str], wanted: Mapping[str, str], folder: pathlib.Path
) -> None:
    """Raises with a two-way list if a checkpoint does not hold what the run needs."""
    rows = [
        f"  {path}: expected {wanted.get(path, 'nothing')}, saved {saved.get(path, 'nothing')}"
        for path in sorted(saved.keys() | wanted.keys())
        if saved.get(path) != wanted.get(path)
    ]
    if rows:
        more = f"\n  ... and {len(rows) - 20} more" if len(rows) > 20 else ""
        raise CheckpointError(
            f"checkpoint {folder} does not fit this run, {len(rows)} leaves differ:\n"
            + "\n".join(rows[:20])
            + more
        )
