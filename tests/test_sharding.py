"""One rule for every leaf, the right bytes on every device, and the same numbers as on one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from medcare_jax.models.aggregators import DA_ATTENTION_COMPONENTS, MKA_COMPONENTS
from medcare_jax.orthogonality import extend_basis, orthonormal_basis
from medcare_jax.params import BASE, flatten, nbytes, split
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import (
    RULES,
    ShardingError,
    batch_sharding,
    check_replicated,
    check_rows,
    check_sizes,
    make_mesh,
    path_name,
    shard_batch,
    sharding_for,
    spec_for,
    tree_shardings,
)
from medcare_jax.training.step import make_state
from tests.helpers import TINY, abstract_params, random_inputs, random_params, tiny_decoder


@pytest.fixture(scope="module")
def cube():
    """Eight devices, two ways along each axis."""
    return make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))


def abstract_run(family: str, components) -> dict[str, jax.ShapeDtypeStruct]:
    """Every leaf of a run by path: frozen trees, adapters, Adam's moments, basis, step, key."""
    parts = split(abstract_params(tiny_decoder(family, components)))
    learning = {name: tree for name, tree in parts.items() if name != BASE}
    chain = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1.0, 9))
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), learning)
    basis = {"knowledge": extend_basis(orthonormal_basis(zeros["knowledge"]), zeros["knowledge"])}
    state = jax.eval_shape(lambda: make_state(zeros, chain, jax.random.key(0), basis))
    leaves = jax.tree_util.tree_leaves_with_path({"frozen": parts, "state": state})
    return {path_name(path): leaf for path, leaf in leaves}


@pytest.mark.parametrize("components", [MKA_COMPONENTS, DA_ATTENTION_COMPONENTS], ids=["mka", "da"])
@pytest.mark.parametrize("family", TINY)
def test_every_leaf_of_a_run_matches_exactly_one_rule(family, components):
    leaves = abstract_run(family, components)
    assert any("/mu/" in path for path in leaves)
    assert any("/basis/" in path for path in leaves)
    used = set()
    for path, leaf in leaves.items():
        matching = [rule for rule, _ in RULES if re.search(rf"(^|/){rule}$", path)]
        assert len(matching) == 1, path
        used |= set(matching)
        assert len(spec_for(path, leaf.shape)) in (0, len(leaf.shape)), path
    if family == "qwen2" and components == MKA_COMPONENTS:
        assert used == {rule for rule, _ in RULES}


# The name of a leaf -> how its axes are cut, layers first.
CUTS = {
    "model/embed_tokens/embedding": P("tensor", "fsdp"),
    "lm_head/kernel": P("fsdp", "tensor"),
    "model/norm/scale": P(None),
    "model/layers/input_layernorm/scale": P(None, None),
    "model/layers/self_attn/k_norm/scale": P(None, None),
    "model/layers/self_attn/q_proj/bias": P(None, "tensor"),
    "model/layers/self_attn/q_proj/kernel": P(None, "fsdp", "tensor"),
    "model/layers/self_attn/o_proj/kernel": P(None, "tensor", "fsdp"),
    "model/layers/mlp/gate_proj/kernel": P(None, "fsdp", "tensor"),
    "model/layers/mlp/down_proj/kernel": P(None, "tensor", "fsdp"),
    "model/layers/mlp/down_proj/knowledge/lora_a": P(None, "fsdp", None),
    "knowledge/model/layers/mlp/down_proj/lora_a": P(None, "fsdp", None),
    "optimizer/1/0/nu/noise/model/layers/mlp/up_proj/lora_b": P(None, None, "fsdp"),
    "basis/alignment/model/layers/self_attn/o_proj/lora_a": P(None, "fsdp", None),
    "basis/alignment/model/layers/mlp/up_proj/lora_b": P(None, "fsdp", None),
    "optimizer/2/removed": P(),
    "model/layers/mlp/up_proj/noise/router_kernel": P(None, None, None),
    "model/layers/mlp/up_proj/noise/router_bias": P(None, None),
    "optimizer/1/0/count": P(),
    "step": P(),
    "skipped": P(),
    "key": P(),
}


@pytest.mark.parametrize(("path", "spec"), CUTS.items(), ids=CUTS)
def test_how_a_leaf_is_cut(path, spec):
    axes = max(len(spec), 1)
    assert spec_for(path, (8,) * axes) == spec


@pytest.mark.parametrize(
    "path",
    [
        "model/layers/mlp/gate_proj/kernle",
        "model/layers/mlp/gate_proj/knowlege/lora_a",
        "model/layers/mlp/knowledge/lora_a",
        "model/layers/mlp/agate_proj/lora_a",
        "model/layers/mlp/gate_proj/lora_a/kernel",
        "model/layers/mlp/gate_proj/knowledge/router_bias",
        "modelnorm/scal",
        "discount",
    ],
)
def test_a_misspelt_leaf_is_refused(path):
    with pytest.raises(
        ShardingError, match=f"leaf {path} matches 0 sharding rules .none.; expected 1"
    ):
        spec_for(path, (2, 2, 2))


def test_a_leaf_with_too_few_axes_is_refused():
    with pytest.raises(ShardingError, match=r"of shape \(4,\) has fewer axes than its rule"):
        spec_for("model/layers/mlp/gate_proj/kernel", (4,))


def test_an_axis_that_does_not_divide_is_refused_with_numbers(cube):
    with pytest.raises(ShardingError) as caught:
        sharding_for(cube, "model/layers/mlp/up_proj/kernel", (3, 20, 37))
    assert str(caught.value) == (
        "leaf model/layers/mlp/up_proj/kernel of shape (3, 20, 37): axis of 37 is not divisible "
        "by 2 (mesh tensor); choose another mesh"
    )


def test_mesh_axes_must_multiply_to_the_devices():
    with pytest.raises(ShardingError) as caught:
        make_mesh(MeshSettings(data=3, fsdp=2, tensor=1))
    assert str(caught.value) == (
        "mesh data x fsdp x tensor = 3 x 2 x 1 = 6 devices, but there are 8; change mesh.* in "
        "the config"
    )
    with pytest.raises(ShardingError, match="= 3 x 2 x 1 = 6 devices, but there are 8"):
        make_mesh(MeshSettings(data=3, fsdp=-1, tensor=1))
    with pytest.raises(ShardingError, match="= 16 x 1 x 1 = 16 devices, but there are 8"):
        make_mesh(MeshSettings(data=16, fsdp=-1, tensor=1))


def test_minus_one_takes_the_devices_that_are_left():
    shape = make_mesh(MeshSettings(data=2, fsdp=-1, tensor=2)).shape
    assert dict(shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    alone = make_mesh(MeshSettings(), jax.devices()[:1])
    assert dict(alone.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def bytes_by_device(array: jax.Array) -> list[int]:
    """What each device holds of an array."""
    return [shard.data.nbytes for shard in array.addressable_shards]


def test_each_of_eight_devices_holds_an_eighth():
    mesh = make_mesh(MeshSettings(data=1, fsdp=2, tensor=4))
    kernel = jnp.zeros((3, 20, 36))
    path = "model/layers/mlp/up_proj/kernel"
    placed = jax.device_put(kernel, sharding_for(mesh, path, kernel.shape))
    assert bytes_by_device(placed) == [kernel.nbytes // 8] * 8
    replicas = make_mesh(MeshSettings(data=4, fsdp=2, tensor=1))
    placed = jax.device_put(kernel, sharding_for(replicas, path, kernel.shape))
    assert bytes_by_device(placed) == [kernel.nbytes // 2] * 8
    batch = jax.device_put(jnp.zeros((8, 11)), batch_sharding(mesh))
    assert bytes_by_device(batch) == [8 * 11 * 4 // 2] * 8


def test_replicated_leaves_over_the_budget_are_listed_with_their_sizes(cube):
    params = abstract_params(tiny_decoder())
    replicated = {
        path: leaf
        for path, leaf in flatten(params).items()
        if path.endswith("/scale") or "/router_" in path
    }
    total = nbytes(replicated) / 2**20
    check_replicated(cube, params, budget_mib=total)
    with pytest.raises(ShardingError) as caught:
        check_replicated(cube, params, budget_mib=0.999 * total)
    first, *rows = str(caught.value).splitlines()
    assert "MiB are replicated on every device, " in first
    assert " % of what it holds; mesh.replicated_budget_mib is " in first
    assert sorted(row.split()[-1] for row in rows) == sorted(replicated)


def test_the_optimizer_and_the_basis_count_as_replicated_too(cube):
    leaves = abstract_run("qwen2", MKA_COMPONENTS)
    with pytest.raises(ShardingError, match="router_kernel") as caught:
        check_replicated(cube, leaves, budget_mib=0.0)
    assert "/mu/" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "accumulation", "unit"), [(6, 1, 4), (4, 2, 8), (12, 8, 32), (1, 1, 4)]
)
def test_rows_that_cannot_be_shared_out_are_refused(cube, rows, accumulation, unit):
    with pytest.raises(ShardingError, match=f"data.rows = {rows} .* multiple of {unit},"):
        check_rows(cube, rows=rows, accumulation=accumulation)
    assert check_rows(cube, rows=2 * unit, accumulation=accumulation) == 2


def test_sizes_that_an_axis_does_not_divide_are_all_named(cube):
    sizes = {"tensor": {"heads": 3, "ffn": 36}, "fsdp": {"hidden": 21}}
    with pytest.raises(ShardingError) as caught:
        check_sizes(cube, sizes)
    assert str(caught.value) == (
        "heads = 3 is not divisible by mesh.tensor = 2; hidden = 21 is not divisible by "
        "mesh.fsdp = 2; choose another mesh"
    )


class SliceDevice:
    """A device of one of several slices, as far as the mesh looks at it."""

    platform = device_kind = "cpu"

    def __init__(self, number):
        self.id, self.process_index, self.slice_index = number, number // 2, number // 4

    def __repr__(self):
        return f"d{self.id}"


def test_of_several_slices_only_data_lies_across():
    devices = [SliceDevice(number) for number in range(8)]
    mesh = make_mesh(MeshSettings(data=4, fsdp=2, tensor=1), devices)
    for replica in mesh.devices:
        assert len({device.slice_index for device in replica.ravel()}) == 1
    assert [row.ravel()[0].slice_index for row in mesh.devices] == [0, 0, 1, 1]
    with pytest.raises(ShardingError, match="make mesh.data a multiple of 2"):
        make_mesh(MeshSettings(data=1, fsdp=8, tensor=1), devices)


def test_a_leaf_whose_mesh_axis_is_one_wide_is_replicated_too():
    """Adapters are cut along fsdp only; a mesh of tensor alone holds them whole everywhere."""
    mesh = make_mesh(MeshSettings(data=1, fsdp=1, tensor=8))
    adapters = {"gate_proj": {"lora_a": jax.ShapeDtypeStruct((3, 2**10, 2**10), jnp.float32)}}
    with pytest.raises(ShardingError, match=r"12\.0 MiB  gate_proj/lora_a"):
        check_replicated(mesh, adapters, budget_mib=11.9)
    check_replicated(mesh, {"gate_proj": {"kernel": adapters["gate_proj"]["lora_a"]}}, budget_mib=0)


def test_a_mesh_of_replicas_only_has_no_budget():
    mesh = make_mesh(MeshSettings(data=8, fsdp=1, tensor=1))
    check_replicated(mesh, abstract_params(tiny_decoder()), budget_mib=0.0)


def test_shard_batch_does_nothing_without_a_mesh():
    x = jnp.ones((8, 3))
    assert shard_batch(x) is x


def test_the_decoder_on_eight_devices_is_the_decoder_on_one(cube):
    decoder = tiny_decoder("qwen2", MKA_COMPONENTS)
    params, inputs = random_params(decoder), random_inputs()
    apply = jax.jit(lambda params, inputs: decoder.apply({"params": params}, *inputs))
    expected = apply(params, inputs)
    with jax.set_mesh(cube):
        placed = jax.device_put(params, tree_shardings(cube, params))
        cut = jax.device_put(inputs, batch_sharding(cube))
        hidden = apply(placed, cut)
    assert hidden.sharding.is_equivalent_to(batch_sharding(cube), hidden.ndim)
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-5)
