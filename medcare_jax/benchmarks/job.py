"""What one contender is asked to do and what it found, as both cross the process boundary."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Job:
    """One contender's run; JSON-able.

    Attributes:
      contender: A name of `medcare_jax.benchmarks.worker.BUILDERS`.
      config: The sections of a run's config, as plain dicts; dropout is 0.
      rates: Learning rate of each step; their number is the number of steps.
      warmup: Steps, the first ones, that are not timed: compilation, allocation.
      cores: CPU cores that the process may use; 0 for all.
    """

    contender: str
    config: dict[str, Any]
    rates: tuple[float, ...]
    warmup: int
    cores: int = 0

    @property
    def scale(self) -> float:
        """What every adapter's output is multiplied by."""
        sizes = self.config["adapters"]
        return float(sizes["alpha"] / sizes["rank"] ** (0.5 if sizes["use_rslora"] else 1.0))

    @property
    def batch_shape(self) -> tuple[int, int]:
        """Rows and tokens of a row, [b, t]."""
        return self.config["data"]["rows"], self.config["data"]["row_length"]


@dataclasses.dataclass(frozen=True)
class Contender:
    """A train step that is ready to go.

    Attributes:
      step: Does the next step, waits for its end and returns the loss before it.
      device: What it runs on.
      peak_device_bytes: The most that was allocated on an accelerator so far; None on a CPU.
      trainable: Number of parameters that learn.
    """

    step: Callable[[], float]
    device: str
    peak_device_bytes: Callable[[], int | None]
    trainable: int


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One contender's run; JSON-able.

    Attributes:
      losses: Before each step, warm-up included.
      seconds: Of each timed step.
      cpu_seconds: The same of all threads together.
      setup_seconds: From the start of the build to the end of the warm-up.
      imports_bytes: Resident after the imports, before anything was built.
      peak_rss_bytes: The most that was resident.
      peak_device_bytes: The most that was allocated on the accelerator; None on a CPU.
      device: What it ran on.
      trainable: Number of parameters that learn.
    """

    losses: list[float]
    seconds: list[float]
    cpu_seconds: list[float]
    setup_seconds: float
    imports_bytes: int
    peak_rss_bytes: int
    peak_device_bytes: int | None
    device: str
    trainable: int
