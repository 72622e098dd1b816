"""Where every array lives: the mesh, ONE table of rules, and what each device holds.

The axes are `data` (replicas), `fsdp` (weights and batch cut the same way) and `tensor` (heads
and FFN columns). Every leaf of base, adapters, optimiser state and basis matches exactly one
rule; model code has no sharding annotations but `shard_batch`.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from medcare_jax.settings import MeshSettings

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

_PROJECTION = "(q|k|v|o|gate|up|down)_proj"

# Regular expression of the whole tail of a path -> how its last axes are cut. Paths of the
# optimiser state end with the parameter's path, so the same rules serve it. A leading layer
# axis is never cut.
RULES: tuple[tuple[str, P], ...] = (
    (r"embed_tokens/embedding", P("tensor", "fsdp")),
    (r"lm_head/kernel", P("fsdp", "tensor")),
    (r"(q|k|v|gate|up)_proj/kernel", P("fsdp", "tensor")),
    (r"(o|down)_proj/kernel", P("tensor", "fsdp")),
    (r"(q|k|v)_proj/bias", P("tensor")),
    (r"(input_layernorm|post_attention_layernorm|norm|q_norm|k_norm)/scale", P(None)),
    (rf"{_PROJECTION}/((knowledge|noise|alignment)/)?lora_a", P("fsdp", None)),
    # All but the basis of lora_b, whose first axis is the outputs: [out, q].
    (
        rf"(?<!.)(?!(.*/)?basis/)(.*/)?{_PROJECTION}/((knowledge|noise|alignment)/)?lora_b",
        P(None, "fsdp"),
    ),
    (rf"basis/(.*/)?{_PROJECTION}/lora_b", P("fsdp", None)),
    (rf"{_PROJECTION}/(noise/)?router_kernel", P(None, None)),
    (rf"{_PROJECTION}/(noise/)?router_bias", P(None)),
    (r"(count|step|key|removed)", P()),
)


class ShardingError(ValueError):
    """A mesh or a leaf that cannot be placed; the message lists what and why."""


def make_mesh(settings: MeshSettings, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run over all devices, or over those given.

    Raises:
      ShardingError: The axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [settings.data, settings.fsdp, settings.tensor]
    if -1 in sizes:
        fixed = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(1, len(devices) // fixed)
    if math.prod(sizes) != len(devices):
        raise ShardingError(
            f"mesh data x fsdp x tensor = {' x '.join(map(str, sizes))} = {math.prod(sizes)} "
            f"devices, but there are {len(devices)}; change mesh.* in the config"
        )
    return jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def shard_batch(x: jax.Array) -> jax.Array:
    """Keeps an array cut along its first axis, the batch, if a mesh is set; else returns it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH_AXES))


def spec_for(path: str, shape: tuple[int, ...]) -> P:
    """How a leaf is cut, by the one rule that its path matches.

    Raises:
      ShardingError: No rule or several match, or the rule has more axes than the leaf.

    >>> tuple(spec_for("model/layers/mlp/up_proj/kernel", (24, 64, 160)))
    (None, 'fsdp', 'tensor')
    """
    found = [(rule, spec) for rule, spec in RULES if re.search(rf"(^|/){rule}$", path)]
    if len(found) != 1:
        names = ", ".join(rule for rule, _ in found) or "none"
        raise ShardingError(
            f"leaf {path} matches {len(found)} sharding rules ({names}); expected 1"
        )
    spec = found[0][1]
    if len(spec) > len(shape):
        raise ShardingError(f"leaf {path} of shape {shape} has fewer axes than its rule {spec}")
    return P(*(None,) * (len(shape) - len(spec)), *spec) if len(spec) else P()


def sharding_for(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of one leaf on a mesh.

    Raises:
      ShardingError: As `spec_for`; or an axis is not divisible by its mesh axes.
    """
    spec = spec_for(path, shape)
    for size, names in zip(shape, spec, strict=False):
        ways = _ways(mesh, names)
        if size % ways:
            raise ShardingError(
                f"leaf {path} of shape {shape}: axis of {size} is not divisible by {ways} "
                f"(mesh {names}); choose another mesh"
            )
    return NamedSharding(mesh, spec)


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """A tree of shardings like `tree`, which may hold arrays or abstract arrays."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: sharding_for(mesh, path_name(path), leaf.shape), tree
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, P(BATCH_AXES))


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path joined by `/`, whatever its nodes are."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def check_replicated(mesh: Mesh, tree: Any, *, budget_mib: float) -> None:
    """Raises if leaves that no mesh axis cuts take more than the budget on each device.

    Raises:
      ShardingError: With the list of leaves and their sizes.
    """
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        spec = spec_for(path_name(path), leaf.shape)
        if all(_ways(mesh, names) == 1 for names in spec):
            sizes[path_name(path)] = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    total = sum(sizes.values()) / 2**20
    if total > budget_mib:
        rows = "\n".join(f"  {size / 2**20:10.1f} MiB  {name}" for name, size in sizes.items())
        raise ShardingError(
            f"{total:.1f} MiB are replicated on every device; mesh.replicated_budget_mib is "
            f"{budget_mib}:\n{rows}"
        )


def _ways(mesh: Mesh, names: str | tuple[str, ...] | None) -> int:
    """Into how many pieces one entry of a spec cuts its axis."""
    axes = () if names is None else (names,) if isinstance(names, str) else names
    return math.prod(mesh.shape[name] for name in axes)
