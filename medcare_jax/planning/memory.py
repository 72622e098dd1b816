"""High-bandwidth memory of one device by kind, and what to change when it is not enough."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh

from medcare_jax.models.families import DecoderSettings, check_model
from medcare_jax.params import BASE
from medcare_jax.planning.program import Program
from medcare_jax.settings import Settings
from medcare_jax.sharding import AXES, ShardingError

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


@dataclasses.dataclass(frozen=True)
class Place:
    """What a plan was made on, as far as a remedy must know.

    Attributes:
      mesh: Devices by axis.
      slices: Each holds whole replicas, so `mesh.data` is at least that.
      decoder: What every mesh has to cut evenly.
      rows: Of one device in a microbatch.
    """

    mesh: Mapping[str, int]
    slices: int
    decoder: DecoderSettings
    rows: int

    def can_be(self, data: int, fsdp: int, tensor: int) -> bool:
        """Whether the model can be cut by another mesh."""
        try:
            check_model(AbstractMesh((data, fsdp, tensor), AXES), self.decoder)
        except ShardingError:
            return False
        return True


def remedies(settings: Settings, memory: Memory, place: Place) -> list[str]:
    """Up to three ways to need less that this run can take, the cheapest first."""
    compute, data = settings.compute, settings.data
    out = []
    if compute.remat != "full":
        out.append(
            "--config.compute.remat=full: keeps each layer's input only; about 1.3x the time"
        )
    if place.rows > 1:
        ways = next(ways for ways in range(2, place.rows + 1) if place.rows % ways == 0)
        out.append(
            f"--config.data.accumulation={ways * data.accumulation}: {place.rows // ways} instead "
            f"of {place.rows} rows per device at once; the base is gathered once more per step"
        )
    out += _finer_cut(place)
    if compute.loss_chunk > 64:
        out.append(f"--config.compute.loss_chunk={compute.loss_chunk // 4}: fewer logits at once")
    out += _more_devices(settings, memory, place) + _more_tensor(settings, place)
    out.append(
        f"--config.data.row_length={data.row_length // 2}: shorter rows; what is longer is dropped "
        "or cut, as data.over_long says"
    )
    return out[:3]


def _finer_cut(place: Place) -> list[str]:
    """No more replicas than there are slices."""
    data, fsdp, tensor = (place.mesh[axis] for axis in AXES)
    mesh = (place.slices, data * fsdp // place.slices, tensor)
    if data == place.slices or not place.can_be(*mesh):
        return []
    return [f"{_mesh_flags(*mesh)}: cuts base and optimiser further"]


def _more_devices(settings: Settings, memory: Memory, place: Place) -> list[str]:
    """Twice the devices, with what must change for the rows and the mesh to be cut by them."""
    data, fsdp, tensor = (place.mesh[axis] for axis in AXES)
    if not place.can_be(data, 2 * fsdp, tensor):
        return []
    flags = [] if settings.mesh.fsdp == -1 else [_mesh_flags(data, 2 * fsdp, tensor)]
    if place.rows % 2 and settings.data.accumulation % 2:
        flags.append(f"--config.data.rows={2 * settings.data.rows}")
    elif place.rows % 2:
        flags.append(f"--config.data.accumulation={settings.data.accumulation // 2}")
    devices = 2 * data * fsdp * tensor // place.slices
    less = (memory.base + memory.optimizer) / 2 / GIB
    what = "a slice" if place.slices == 1 else f"{place.slices} slices"
    changed = f" with {' '.join(flags)}" if flags else ""
    return [f"{what} of {devices} devices{changed}: {less:.2f} GiB less of base and optimiser each"]


def _more_tensor(settings: Settings, place: Place) -> list[str]:
    """Rows that two devices share, where there were two with a row each."""
    data, fsdp, tensor = (place.mesh[axis] for axis in AXES)
    mesh = (data, fsdp // 2, 2 * tensor)
    if fsdp % 2 or not place.can_be(*mesh):
        return []
    accumulation = f"--config.data.accumulation={2 * settings.data.accumulation}"
    return [f"{_mesh_flags(*mesh)} {accumulation}: each row's FFN and heads on two devices, slower"]


def _mesh_flags(*sizes: int) -> str:
    """The flags of a mesh, all of them: what was fixed before would be in the way."""
    return " ".join(f"--config.mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))


def _local_bytes(tree: Any) -> int:
    """Bytes of one device's part of a tree of abstract arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )
