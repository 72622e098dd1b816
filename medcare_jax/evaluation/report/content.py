"""What a run's report is made from: plain numbers and text, no model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medcare_jax.evaluation.results import Results


@dataclass(frozen=True)
class StageCurve:
    """What was measured along one stage; every array has one value per entry of `step`.

    Attributes:
      name: the stage as a reader is told of it.
      step: optimiser steps, ascending.
      loss: mean negative log-likelihood per target token, nats.
      learning_rate: of the update at that step.
      tokens_per_second: throughput, over all devices.
      leak: largest ||Q^T A|| / ||A|| over projections; empty where there is no alignment.
      leak_limit: what the constraint promises of `leak`; None if it promises nothing.
    """

    name: str
    step: tuple[int, ...]
    loss: tuple[float, ...]
    learning_rate: tuple[float, ...]
    tokens_per_second: tuple[float, ...]
    leak: tuple[float, ...] = ()
    leak_limit: float | None = None

    def __post_init__(self) -> None:
        """Refuses arrays of other lengths and numbers that are not finite."""
        for name in ("loss", "learning_rate", "tokens_per_second", "leak"):
            values = getattr(self, name)
            if len(values) != len(self.step) and (values or name != "leak"):
                raise ValueError(
                    f"stage {self.name!r}: expected {len(self.step)} values of {name}, one per "
                    f"step, got {len(values)}"
                )
            if bad := [s for s, v in zip(self.step, values, strict=False) if not math.isfinite(v)]:
                raise ValueError(
                    f"stage {self.name!r}: {name} is not finite at step {bad[0]}; such a step is "
                    "no part of a finished stage"
                )


@dataclass(frozen=True)
class RunReport:
    """A finished run, or what there is of it.

    Attributes:
      title: headline.
      base: the base model, as it was named.
      stages: curves, in the order of training.
      scores: by `base`, `mka`, `da`, what `evaluator.evaluate` returns; stages may be absent.
      data: the data report, nested as it is.
      settings: the run's config, nested as it is.
      digests: name to sha256.
      versions: package to version.
      export: where the exported model lies; empty if there is none.
    """

    title: str
    base: str
    stages: tuple[StageCurve, ...] = ()
    scores: Mapping[str, Results] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    export: str = ""


def flat_items(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows of dotted name and text.

    Examples:
      >>> flat_items({"mka": {"epochs": 1, "files": ("a.json",)}, "seed": 0})
      [('mka.epochs', '1'), ('mka.files', 'a.json'), ('seed', '0')]
      >>> flat_items({"files": [{"kept": 7}, {"kept": 12_000}]})
      [('files.1.kept', '7'), ('files.2.kept', '12,000')]
    """
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        is_list = isinstance(value, list | tuple)
        if isinstance(value, Mapping):
            rows += flat_items(value, f"{prefix}{name}.")
        elif is_list and any(isinstance(entry, Mapping | list | tuple) for entry in value):
            numbered = {str(number): entry for number, entry in enumerate(value, 1)}
            rows += flat_items(numbered, f"{prefix}{name}.")
        else:
            text = ", ".join(map(as_text, value)) if is_list else as_text(value)
            rows.append((prefix + name, text or "–"))
    return rows


def as_text(value: object) -> str:
    """One value; thousands are grouped, nothing is rounded."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    return "–" if value in (None, "") else str(value)
