"""What a checkpoint remembers of its run, to be compared when a run goes on from it."""

import dataclasses
import importlib.metadata
from typing import Any

import jax

from medcare_jax.settings import ConstraintSettings, Settings, StageSettings
from medcare_jax.version import __version__

KNOWLEDGE_DIGEST = "knowledge.digest"
"""The fact that is known only when MKA has ended: what the alignment was taught beside."""
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that decide the numbers."""
    return {"medcare-jax": __version__} | {
        name: importlib.metadata.version(name) for name in _LIBRARIES
    }


def run_facts(
    settings: Settings,
    stage: StageSettings,
    constraint: ConstraintSettings | None,
    *,
    base_digest: str,
    fingerprint: str,
    steps: int,
    knowledge_digest: str | None = None,
) -> dict[str, Any]:
    """Facts by name; `training/resume.py` says which may change.

    The stage before the alignment knows nothing of the constraint (None), so one MKA can be gone
    on from under several; nor of its own result, which the alignment's stage stands on.
    """
    sections: dict[str, Any] = {
        "adapters": settings.adapters,
        "compute": settings.compute,
        "mesh": settings.mesh,
        "stage": stage,
        "data": settings.data,
    }
    if constraint is not None:
        sections["constraint"] = constraint
    facts = {
        f"{section}.{name}": list(value) if isinstance(value, tuple) else value
        for section, values in sections.items()
        for name, value in dataclasses.asdict(values).items()
        if name not in ("files", "weights")  # the fingerprint stands for what is in them
    }
    if knowledge_digest is not None:
        facts[KNOWLEDGE_DIGEST] = knowledge_digest
    facts |= {f"versions.{name}": version for name, version in versions().items()}
    return facts | {
        "base.digest": base_digest,
        "base.dtype": settings.base.dtype,  # the digest is of the files, before any rounding
        "data.fingerprint": fingerprint,
        "seed": settings.seed,
        "stage.steps": steps,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
    }
