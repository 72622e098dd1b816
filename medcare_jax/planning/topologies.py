"""TPU slices by name: what a chip of each family can do, and abstract devices to compile for."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a TPU family as JAX sees it; v4 has two to a chip.

    Attributes:
      peak: bfloat16 FLOP per second.
      hbm: Bytes that the compiler lets a program use.
      clock: Cycles per second of the compiler's estimates.
      link: Bytes per second of one interconnect link, one way.
      links: Links of a device in the middle of a slice without wrap-around; a corner has half,
        and devices of one chip share the chip's.
      per_chip: Devices to a chip.
      dimensions: Numbers in the name of a slice.
    """

    peak: float
    hbm: int
    clock: float
    link: float
    links: int
    per_chip: int
    dimensions: int


_GIB = 2**30
# Peaks, links: Google's system architecture pages of each family. HBM: libtpu's own limit.
CHIPS = {
    "v4": Chip(137.5e12, int(15.25 * _GIB), 1.05e9, 45e9, 3, 2, 3),
    "v5e": Chip(197e12, int(15.75 * _GIB), 1.5e9, 45e9, 4, 1, 2),
    "v5p": Chip(459e12, int(95.74 * _GIB), 1.75e9, 90e9, 6, 1, 3),
    "v6e": Chip(918e12, int(31.25 * _GIB), 1.75e9, 90e9, 4, 1, 2),
}


class TopologyError(ValueError):
    """A slice that does not exist, or that the compiler does not know."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or several equal slices.

    Attributes:
      name: As given, `v5e:4x4`.
      chip: What each device can do.
      devices: In all slices.
      slices: How many; between them is the data-centre network.
    """

    name: str
    chip: Chip
    devices: int
    slices: int

    @property
    def chips(self) -> int:
        """Chips in all slices."""
        return self.devices // self.chip.per_chip


def parse(name: str, slices: int = 1) -> Topology:
    """The topology of that name; no TPU software is asked.

    Raises:
      TopologyError: Says what a name looks like, with examples of the family.

    >>> parse("v5p:2x2x4", slices=2).chips
    32
    >>> parse("v5e:4by4")
    Traceback (most recent call last):
    medcare_jax.planning.topologies.TopologyError: topology 'v5e:4by4' does not exist; expected \
v5e:AxB, for example v5e:4x4
    """
    family, _, shape = name.partition(":")
    if family not in CHIPS:
        raise TopologyError(
            f"topology {name!r} does not exist; expected FAMILY:SHAPE, for example v5e:4x4 or "
            f"v5p:2x2x2, with a family of {', '.join(CHIPS)}"
        )
    chip = CHIPS[family]
    sizes = shape.split("x")
    if len(sizes) != chip.dimensions or not all(size.isdigit() and int(size) for size in sizes):
        form, example = (("AxB", "4x4"), ("AxBxC", "2x2x2"))[chip.dimensions - 2]
        raise TopologyError(
            f"topology {name!r} does not exist; expected {family}:{form}, "
            f"for example {family}:{example}"
        )
    if slices < 1:
        raise TopologyError(f"slices = {slices}; must be at least 1")
    return Topology(name, chip, math.prod(map(int, sizes)) * chip.per_chip * slices, slices)


def compile_devices(topology: Topology) -> Sequence[jax.Device]:
    """Devices that programs can be compiled for and not run on; needs libtpu and no TPU.

    Raises:
      TopologyError: libtpu is missing or does not know the slice.
    """
    options = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.devices == topology.chip.per_chip:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **options
        )
    except Exception as error:  # libtpu raises what it likes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise TopologyError(
            f"the TPU compiler refuses topology {topology.name!r} x {topology.slices}: {reason}\n"
            "Slices are powers of two a side: v5e and v6e 2x2 to 16x16, v4 and v5p from 2x2x1. "
            "If libtpu is missing: pip install 'medcare-jax[tpu]'"
        ) from None
    return described.devices
