"""What may change between a checkpoint and the run that goes on from it: one published table."""

import enum
import fnmatch
import logging
from collections.abc import Mapping
from typing import Any

from medcare_jax.checkpoints import CheckpointError


class Change(enum.Enum):
    """What happens when a fact is another one than when the checkpoint was saved."""

    ALLOWED = "allowed"
    WARNED = "warned"
    REFUSED = "refused"


# Pattern of the fact -> what happens, and why. The first match counts.
RESUME_TABLE: tuple[tuple[str, Change, str], ...] = (
    ("base.digest", Change.REFUSED, "the adapters were learned on other weights"),
    ("knowledge.digest", Change.REFUSED, "the alignment was taught beside other knowledge"),
    ("base.dtype", Change.REFUSED, "the frozen weights would be rounded in another way"),
    ("data.fingerprint", Change.REFUSED, "the batches to come would not be those of this run"),
    ("adapters.*", Change.REFUSED, "the trees would have other shapes, scale or dropout"),
    ("constraint.*", Change.REFUSED, "the stage would be neither of the two experiments"),
    ("seed", Change.REFUSED, "dropout and order would not be those of this run"),
    ("stage.steps", Change.REFUSED, "the learning rate follows the number of steps"),
    ("stage.max_skipped", Change.ALLOWED, "it decides when to stop, not what is learned"),
    ("stage.*", Change.WARNED, "the optimiser goes on with the new value"),
    ("mesh.replicated_budget_mib", Change.ALLOWED, "it decides when to stop, not what is cut"),
    ("mesh.*", Change.WARNED, "sums are taken in another order: equal to rounding, not to the bit"),
    ("compute.*", Change.WARNED, "equal to rounding, not to the bit"),
    ("data.accumulation", Change.WARNED, "equal to rounding, and other dropout masks"),
    ("data.*", Change.ALLOWED, "the fingerprint holds what decides the batches"),
    ("devices", Change.WARNED, "equal to rounding, not to the bit"),
    ("versions.*", Change.WARNED, "another compiler may round in another way"),
    ("processes", Change.ALLOWED, "a batch does not depend on how many read it"),
)


def check_resume(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Compares the facts of a checkpoint with those of the run that wants to go on.

    Returns:
      One warning for each fact whose change is warned of; they are logged too.

    Raises:
      CheckpointError: As `refuse_changes`.
    """
    refuse_changes(saved, current)
    warned = _changed(saved, current, Change.WARNED)
    for row in warned:
        logging.getLogger(__name__).warning("changed since the checkpoint: %s", row)
    return warned


def refuse_changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises if a run with these facts cannot go on from a checkpoint with those; warns of nothing.

    Raises:
      CheckpointError: A fact changed that must not; all of them are listed.
    """
    refused = _changed(saved, current, Change.REFUSED)
    if refused:
        raise CheckpointError(
            "this workdir holds a run with other settings; put them back, or use a new workdir:\n  "
            + "\n  ".join(refused)
        )


def _changed(saved: Mapping[str, Any], current: Mapping[str, Any], wanted: Change) -> list[str]:
    """A row for each fact that changed and whose change is of the wanted kind."""
    rows = []
    for name in sorted(saved.keys() | current.keys()):
        if saved.get(name) == current.get(name):
            continue
        change, why = _rule(name, is_ours=name in current)
        if change is wanted:
            rows.append(f"{name}: {saved.get(name)!r} -> {current.get(name)!r} ({why})")
    return rows


def _rule(name: str, *, is_ours: bool) -> tuple[Change, str]:
    """The first row of the table that matches."""
    for pattern, change, why in RESUME_TABLE:
        if fnmatch.fnmatchcase(name, pattern):
            return change, why
    if not is_ours:
        return Change.REFUSED, "another build remembered it, this one does not know what it means"
    raise KeyError(f"no row of RESUME_TABLE matches {name!r}")
