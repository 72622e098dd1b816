"""One plan: compile a stage's step for a slice and say what it needs and how long it takes.

The estimate is the compiler's, never a measurement: `low` counts matmuls and attention only, as
if all else were hidden behind them; `high` adds every other operation, as if nothing were.
"""

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
from jax.sharding import Mesh

from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import check_model
from medcare_jax.models.flops import useful_flops
from medcare_jax.planning import hlo, memory, program
from medcare_jax.planning.bases import base_shape
from medcare_jax.planning.topologies import Topology, compile_devices
from medcare_jax.settings import Settings, SettingsError
from medcare_jax.sharding import check_rows, make_mesh

ATTENTION_USE = 0.5
"""Share of the peak that attention kernels are taken to reach; they carry no estimate."""
ASSUMPTIONS = (
    f"attention kernels at {ATTENTION_USE:.0%} of peak, collectives overlapped with compute, "
    "in rings over links without wrap-around and, between slices too, as fast as within one; "
    "never checked against a TPU"
)


def make_plan(settings: Settings, stage: str, topology: Topology) -> dict[str, Any]:
    """Compiles and counts; a JSON object. Run it in a process of its own (`worker`).

    Raises:
      SettingsError, TopologyError, ShardingError: What was asked for cannot exist.
    """
    if settings.compute.attention == "blocks":
        raise SettingsError(
            "compute.attention = 'blocks'; how often its loops run depends on the dialogues, which "
            "a plan does not know: leave it at auto, which takes splash on a TPU"
        )
    decoder, source = base_shape(settings.base)
    mesh = make_mesh(settings.mesh, compile_devices(topology))
    check_model(mesh, decoder)
    rows = check_rows(mesh, rows=settings.data.rows, accumulation=settings.data.accumulation)
    place = memory.Place(mesh.shape, topology.slices, decoder, rows)
    result = {
        "base": source,
        "stage": stage,
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "mesh": dict(mesh.shape),
        "rows": settings.data.rows,
        "rows_per_device": rows,
        "accumulation": settings.data.accumulation,
        "row_length": settings.data.row_length,
        "remat": settings.compute.remat,
        "versions": {name: version(name) for name in ("jax", "libtpu")},
    }
    # The devices cannot hold an array, so the mesh is current in the abstract only.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        built = program.build(settings, decoder, stage, mesh)
        needs = memory.arguments(built)
        try:
            compiled = built.compile()
        except jax.errors.JaxRuntimeError as error:
            peak = memory.exhausted_bytes(str(error))
            if peak is None:
                raise
            # Its figure is rounded, and may come out as the limit that it is above.
            peak = max(peak, topology.chip.hbm + 1)
            return result | _fit(settings, memory.with_peak(needs, peak), topology, place)
    peak = compiled.memory_analysis().peak_memory_in_bytes
    result |= _fit(settings, memory.with_peak(needs, peak), topology, place)
    counts = hlo.count(hlo.Program(compiled.as_text()))
    return result | _speed(settings, built.decoder, topology, counts, mesh)


def _fit(
    settings: Settings, needs: memory.Memory, topology: Topology, place: memory.Place
) -> dict[str, Any]:
    """Whether it fits, by how much, and what to do if not."""
    limit, peak = topology.chip.hbm, needs.peak or 0
    fits = peak <= limit
    kinds = dataclasses.asdict(needs)
    held = {kind: kinds[kind] for kind in ("base", "adapters", "optimizer", "batch", "temporary")}
    result: dict[str, Any] = {
        "fits": fits,
        "hbm_limit": limit,
        "hbm_peak": peak,
        "hbm_free": limit - peak,
        "hbm": held,
    }
    if not fits:
        result["largest_kind"] = max(held, key=lambda kind: held[kind] or 0)
        result["remedies"] = memory.remedies(settings, needs, place)
    return result


def _speed(
    settings: Settings,
    decoder: Decoder,
    topology: Topology,
    counts: hlo.Counts,
    mesh: Mesh,
) -> dict[str, Any]:
    """Work, collectives and time of a step."""
    chip, data = topology.chip, settings.data
    tokens = data.rows * data.row_length
    useful = useful_flops(decoder, data.row_length) * tokens
    useful /= topology.devices
    kernels = counts.kernel_flops / (ATTENTION_USE * chip.peak)
    low = counts.matmul_cycles / chip.clock + kernels
    high = low + counts.other_cycles / chip.clock
    by_kind = _collectives(counts.collectives, mesh)
    network = sum(each.sent for each in counts.collectives) / (chip.link * chip.links)
    seconds = [max(low, network), max(high, 2 * network)]
    return {
        "flops": {
            "per_device": counts.matmul_flops + counts.kernel_flops,
            "useful_per_device": useful,
            "useful_share": useful / (counts.matmul_flops + counts.kernel_flops),
        },
        "collectives": by_kind,
        "compute_seconds": [low, high],
        "network_seconds": [network, 2 * network],
        "step_seconds": seconds,
        "tokens_per_step": tokens,
        "tokens_per_second": [tokens / each for each in reversed(seconds)],
        "lora_mfu": [useful / each / chip.peak for each in reversed(seconds)],
        "assumptions": ASSUMPTIONS,
    }


def _collectives(collectives: Sequence[hlo.Collective], mesh: Mesh) -> list[dict[str, Any]]:
    """Bytes and number by kind and mesh axis, the largest first."""
    sums: dict[tuple[str, str], list[int]] = {}
    for each in collectives:
        axis = hlo.axes_of(each.group, dict(mesh.shape))
        entry = sums.setdefault((each.kind, axis), [0, 0])
        entry[0] += each.bytes
        entry[1] += each.count
    rows = [
        {"kind": kind, "axis": axis, "bytes": size, "count": number}
        for (kind, axis), (size, number) in sums.items()
    ]
    return sorted(rows, key=lambda row: -int(row["bytes"]))


def duration(plan: dict[str, Any], tokens: float) -> dict[str, list[float]]:
    """Days and chip-hours that so many tokens take; tokens of packed rows, padding included.

    >>> plan = {"tokens_per_second": [50.0, 100.0], "chips": 4}
    >>> duration(plan, 100 * 86400)
    {'days': [1.0, 2.0], 'chip_hours': [96.0, 192.0]}
    """
    days = [tokens / each / 86400 for each in reversed(plan["tokens_per_second"])]
    return {"days": days, "chip_hours": [each * 24 * plan["chips"] for each in days]}
