"""High-bandwidth memory of one device by kind, and what to change when it is not enough."""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np

from medcare_jax.params import BASE
from medcare_jax.planning.program import Program
from medcare_jax.settings import Settings

GIB = 2**30
# What the compiler has said of a program that is too large, in several releases of libtpu; both
# figures hold the arguments too.
_EXHAUSTED = re.compile(
    r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT]? hbm"
    r"|required for HLO temporaries \(([\d.]+)([KMGT])\)"
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      base: Frozen weights.
      adapters: Adapters, learning or not, and the basis.
      optimizer: Moments and counters.
      batch: Token ids and masks.
      temporary: All that the step itself needs on top at its peak: activations, gathered
        weights, gradients. None if the compiler stopped before it knew.
      peak: The compiler's own peak.
    """

    base: int
    adapters: int
    optimizer: int
    batch: int
    temporary: int | None
    peak: int | None


def arguments(program: Program) -> Memory:
    """What the arguments of a step take; the rest is for the compiler to say."""
    frozen = {name: tree for name, tree in program.frozen.items() if name != BASE}
    state = program.state
    return Memory(
        base=_local_bytes(program.frozen[BASE]),
        adapters=_local_bytes((frozen, state.learning, state.basis)),
        optimizer=_local_bytes((state.optimizer, state.step, state.key)),
        batch=_local_bytes(program.batch),
        temporary=None,
        peak=None,
    )


def with_peak(memory: Memory, peak: int) -> Memory:
    """The memory once the compiler has said its peak."""
    held = memory.base + memory.adapters + memory.optimizer + memory.batch
    return dataclasses.replace(memory, temporary=max(0, peak - held), peak=peak)


def exhausted_bytes(message: str) -> int | None:
    """What a program needs that the compiler refused as too large; None for another error.

    >>> exhausted_bytes("RESOURCE_EXHAUSTED: ... Used 36.10G of 15.75G hbm. Exceeded ...") // 2**30
    36
    """
    found = _EXHAUSTED.search(message)
    if found is None:
        return None
    number, unit = (group for group in found.groups() if group)
    return int(float(number) * 1024 ** ("KMGT".index(unit) + 1))


def remedies(settings: Settings, memory: Memory, *, rows: int, devices: int) -> list[str]:
    """The three cheapest ways to need less, the cheapest first."""
    out, accumulation = [], settings.data.accumulation
    if settings.compute.remat != "full":
        out.append(
            "--config.compute.remat=full: keeps each layer's input only; about 1.3x the time"
        )
    if rows > 1:
        out.append(
            f"--config.data.accumulation={2 * accumulation}: {rows // 2} instead of {rows} rows "
            "per device at once; the base is gathered once more per step"
        )
    if settings.mesh.data > 1:
        out.append("--config.mesh.data=1 --config.mesh.fsdp=-1: cuts base and optimiser further")
    if settings.compute.loss_chunk > 64:
        out.append(
            f"--config.compute.loss_chunk={settings.compute.loss_chunk // 4}: fewer logits at once"
        )
    out.append(
        f"a slice of {2 * devices} devices: "
        f"{(memory.base + memory.optimizer) / 2 / GIB:.2f} GiB less of base and optimiser each"
    )
    out.append("--config.mesh.tensor=2: each row's FFN and heads on two devices, slower")
    return out[:3]


def _local_bytes(tree: Any) -> int:
    """Bytes of one device's part of a tree of abstract arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )
