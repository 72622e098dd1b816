"""One plan: compile a stage's step for a slice and say what it needs and how long it takes.

The estimate is the compiler's, never a measurement: `low` counts matmuls and attention only, as
if all else were hidden behind them; `high` adds every other operation, as if nothing were.
"""

import dataclasses
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
from jax.sharding import Mesh

from medcare_jax.models.families import DecoderSettings
from medcare_jax.planning import hlo, memory, program
from medcare_jax.planning.bases import base_shape
from medcare_jax.planning.topologies import Topology, compile_devices
from medcare_jax.planning.workload import useful_flops
from medcare_jax.settings import Settings
from medcare_jax.sharding import ShardingError, make_mesh

ATTENTION_USE = 0.5
"""Share of the peak that attention kernels are taken to reach; they carry no estimate."""
ASSUMPTIONS = (
    f"attention kernels at {ATTENTION_USE:.0%} of peak, collectives overlapped with compute, "
    "links without wrap-around and, between slices too, as fast as within one; never checked "
    "against a TPU"
)


def make_plan(settings: Settings, stage: str, topology: Topology) -> dict[str, Any]:
    """Compiles and counts; a JSON object. Run it in a process of its own (`worker`).

    Raises:
      SettingsError, TopologyError, ShardingError: What was asked for cannot exist.
    """
    decoder, source = base_shape(settings.base)
    mesh = make_mesh(settings.mesh, compile_devices(topology))
    rows = check_divides(settings, decoder, mesh)
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
            return result | _fit(settings, memory.with_peak(needs, peak), topology, rows)
    peak = compiled.memory_analysis().peak_memory_in_bytes
    result |= _fit(settings, memory.with_peak(needs, peak), topology, rows)
    counts = hlo.count(hlo.Program(compiled.as_text()))
    return result | _speed(settings, decoder, stage, topology, counts, mesh)


def check_divides(settings: Settings, decoder: DecoderSettings, mesh: Mesh) -> int:
    """Rows of one device in a microbatch.

    Raises:
      ShardingError: Rows, heads or FFN columns cannot be cut as the mesh wants.
    """
    batch, tensor = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]
    data = settings.data
    at_once = data.rows // data.accumulation
    if at_once % batch:
        raise ShardingError(
            f"data.rows / data.accumulation = {data.rows} / {data.accumulation} = {at_once} rows "
            f"are not divisible by mesh data x fsdp = {batch}; for example data.rows="
            f"{batch * data.accumulation * math.ceil(at_once / batch)}"
        )
    sizes = {
        "heads": decoder.num_heads,
        "key-value heads": decoder.num_kv_heads,
        "FFN columns": decoder.intermediate_size,
    }
    for what, size in sizes.items():
        if size % tensor:
            raise ShardingError(
                f"{size} {what} are not divisible by mesh.tensor = {tensor}; use a divisor"
            )
    return at_once // batch


def _fit(settings: Settings, needs: memory.Memory, topology: Topology, rows: int) -> dict[str, Any]:
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
        result["remedies"] = memory.remedies(settings, needs, rows=rows, devices=topology.devices)
    return result


def _speed(
    settings: Settings,
    decoder: DecoderSettings,
    stage: str,
    topology: Topology,
    counts: hlo.Counts,
    mesh: Mesh,
) -> dict[str, Any]:
    """Work, collectives and time of a step."""
    chip, data = topology.chip, settings.data
    tokens = data.rows * data.row_length
    useful = useful_flops(decoder, settings.adapters, stage, data.row_length) * tokens
    useful /= topology.devices
    kernels = counts.kernel_flops / (ATTENTION_USE * chip.peak)
    low = counts.matmul_cycles / chip.clock + kernels
    high = low + counts.other_cycles / chip.clock
    by_kind = _collectives(counts.collectives, mesh)
    network = sum(each["bytes"] for each in by_kind) / (chip.link * chip.links)
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
