"""Where every array lives: the mesh, ONE table of rules, and what each device holds.

The axes are `data` (replicas; of several TPU slices it is the one that lies across them), `fsdp`
(weights and batch cut the same way) and `tensor` (heads and FFN columns). Every leaf of base,
adapters, optimiser state and basis matches exactly one rule; model code has no sharding
annotations but `shard_batch`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from medcare_jax.settings import MeshSettings

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

_LISTED = 16
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
    (r"(count|step|skipped|key|removed)", P()),
)


class ShardingError(ValueError):
    """A mesh or a leaf that cannot be placed; the message lists what and why."""


def make_mesh(settings: MeshSettings, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run over all devices, or over those given.

    Of several TPU slices each holds whole replicas: only `data` crosses the slow network between.

    Raises:
      ShardingError: The axes do not multiply to the number of devices, or `fsdp` or `tensor` would
        lie across slices.
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
    axis_types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    if slices == 1:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=axis_types, devices=devices)
    if sizes[0] % slices:
        raise ShardingError(
            f"{slices} slices and mesh data x fsdp x tensor = {' x '.join(map(str, sizes))}: fsdp "
            f"or tensor would lie across slices; make mesh.data a multiple of {slices}"
        )
    inside = (sizes[0] // slices, *sizes[1:])
    grid = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices)
    return Mesh(grid, AXES, axis_types=axis_types)


def check_rows(mesh: Mesh | AbstractMesh, *, rows: int, accumulation: int) -> int:
    """Rows of one device in a microbatch.

    Raises:
      ShardingError: They cannot be shared out evenly; with the numbers, and the nearest that would.
    """
    ways = _ways(mesh, BATCH_AXES)
    if rows % (accumulation * ways):
        unit = accumulation * ways
        nearest = max(unit, round(rows / unit) * unit)
        raise ShardingError(
            f"data.rows = {rows} cannot be cut into data.accumulation = {accumulation} "
            f"microbatches over mesh data x fsdp = {ways} devices; expected a multiple of "
            f"{unit}, such as {nearest}"
        )
    return rows // (accumulation * ways)


def check_sizes(mesh: Mesh | AbstractMesh, sizes: Mapping[str, Mapping[str, int]]) -> None:
    """Raises if an axis of the mesh does not divide what it cuts.

    Args:
      mesh: The devices.
      sizes: By mesh axis, the sizes that it cuts, by name.

    Raises:
      ShardingError: Names every size that does not divide.
    """
    wrong = [
        f"{name} = {size} is not divisible by mesh.{axis} = {mesh.shape[axis]}"
        for axis, named in sizes.items()
        for name, size in named.items()
        if size % mesh.shape[axis]
    ]
    if wrong:
        raise ShardingError("; ".join(wrong) + "; choose another mesh")


def current_platform() -> str:
    """`cpu`, `gpu` or `tpu`: of the current mesh's devices, or of the default ones without."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def gather(tree: Any) -> Any:
    """The tree whole on every device, if a mesh is set; else as it is."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, P()), tree)


def gather_weight(name: str, leaf: jax.Array) -> jax.Array:
    """One layer's weight whole along `fsdp` and still cut along `tensor`, if a mesh is set.

    Said and not left to the compiler, which would ring the slices through each matmul instead:
    many more, smaller messages, and ten times the program.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return leaf
    spec = P(*(None if axis == "fsdp" else axis for axis in spec_for(name, leaf.shape)))
    return jax.lax.with_sharding_constraint(leaf, spec)


def scatter(tree: Any) -> Any:
    """The tree cut as the rules say, if a mesh is set; else as it is."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(
            leaf, spec_for(path_name(path), leaf.shape)
        ),
        tree,
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

    Args:
      mesh: The devices. A mesh of replicas only has no budget: there the base fits whole.
      tree: Everything that stays on the devices: frozen trees, and the whole train state.
      budget_mib: Of replicated bytes on each device.

    Raises:
      ShardingError: With their share and the list of leaves and sizes, the largest first.
    """
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    sizes, held = {}, 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        spec = spec_for(path_name(path), leaf.shape)
        ways = math.prod(_ways(mesh, names) for names in spec)
        nbytes = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        held += nbytes / ways
        if ways == 1 and nbytes:
            sizes[path_name(path)] = nbytes
    total = sum(sizes.values())
    if total > budget_mib * 2**20:
        largest = sorted(sizes.items(), key=lambda item: -item[1])
        rows = [f"  {size / 2**20:10.1f} MiB  {name}" for name, size in largest[:_LISTED]]
        rows += [f"  and {len(largest) - _LISTED} more"] if len(largest) > _LISTED else []
        raise ShardingError(
            f"{total / 2**20:.1f} MiB are replicated on every device, {100 * total / held:.0f} % "
            f"of what it holds; mesh.replicated_budget_mib is {budget_mib}. Raise it, or choose a "
            "mesh with more fsdp:\n" + "\n".join(rows)
        )


def _ways(mesh: Mesh | AbstractMesh, names: str | tuple[str, ...] | None) -> int:
    """Into how many pieces one entry of a spec cuts its axis."""
    axes = () if names is None else (names,) if isinstance(names, str) else names
    return math.prod(mesh.shape[name] for name in axes)
