"""The reader of TPU programs, on a real program from the TPU compiler whose counts are known."""

import os

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from medcare_jax.models.splash import splash_attend
from medcare_jax.planning import hlo
from medcare_jax.planning.topologies import compile_devices, parse
from medcare_jax.planning.worker import _ENVIRONMENT
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import BATCH_AXES, make_mesh

LAYERS, ROWS, WIDTH = 5, 512, 1024


@pytest.fixture(scope="module")
def mesh():
    """Four devices that can be compiled for."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k != "JAX_PLATFORMS"})
    return make_mesh(MeshSettings(), compile_devices(parse("v5e:2x2")))


@pytest.fixture(scope="module")
def program(mesh):
    """x @ w, five times in a loop, w gathered from four devices each time."""

    def loop(x, weights):
        def layer(x, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, weights)[0]

    place = lambda shape, *axes: jax.ShapeDtypeStruct(
        shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*axes))
    )
    x = place((4 * ROWS, WIDTH), ("data", "fsdp"))
    weights = place((LAYERS, WIDTH, WIDTH), None, "fsdp")
    return hlo.Program(jax.jit(loop).lower(x, weights).compile().as_text())


def test_flops_count_every_turn_of_the_loop(program):
    counts = hlo.count(program)
    assert counts.matmul_flops == 2 * ROWS * WIDTH * WIDTH * LAYERS
    # 128 x 128 cells twice a cycle are 65,536 FLOP on one of v5e's four units.
    assert counts.matmul_flops / counts.matmul_cycles < 4 * 2 * 128 * 128
    assert counts.kernel_flops == 0


def test_attention_kernels_count_two_matmuls_forward_and_five_backward(mesh):
    """Rows of two blocks of keys, for each of which the kernel gives a gradient of queries."""
    length, heads, width = 2048, 4, 128
    rows = NamedSharding(mesh, P(BATCH_AXES))
    make = lambda n: jax.ShapeDtypeStruct((4, length, n, width), jnp.float32, sharding=rows)
    segments = jax.ShapeDtypeStruct((4, length), jnp.int32, sharding=rows)
    attend = lambda *args: splash_attend(*args, residual_name="out").sum()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        gradients = jax.jit(jax.grad(attend, argnums=(0, 1, 2)))
        compiled = gradients.lower(make(heads), make(2), make(2), segments).compile()
    counts = hlo.count(hlo.Program(compiled.as_text()))
    assert counts.kernel_flops == (2 + 5) * heads * length * length * width


def test_gathers_are_counted_in_bytes_and_along_their_axis(program):
    gathers = [each for each in hlo.count(program).collectives if each.kind == "all-gather"]
    assert sum(each.bytes for each in gathers) == LAYERS * WIDTH * WIDTH * 2
    mesh = {"data": 1, "fsdp": 4, "tensor": 1}
    assert {hlo.axes_of(each.group, mesh) for each in gathers} == {"fsdp"}


def test_a_sum_of_which_each_keeps_a_part_is_sent_round_once_and_one_that_all_keep_twice(mesh):
    place = lambda *axes: NamedSharding(mesh, P(*axes))

    def sums(x, y):
        outer = lambda x, y: jnp.einsum("bi,bo->io", x, y)
        part = jax.lax.with_sharding_constraint(outer(x, y), place("fsdp"))
        return part, jax.lax.with_sharding_constraint(outer(y, x), place())

    args = [
        jax.ShapeDtypeStruct((4096, size), jnp.float32, sharding=place("fsdp"))
        for size in (1024, 2048)
    ]
    text = jax.jit(sums).lower(*args).compile().as_text()
    size = 1024 * 2048 * 4
    found = hlo.count(hlo.Program(text)).collectives
    assert sorted(each.sent for each in found) == [size * 3 / 4, 2 * size * 3 / 4]
    assert [each.bytes for each in found] == [size, size]


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", 70),
        ("all-reduce", 140),
        ("reduce-scatter", 560),
        ("all-to-all", 70),
        ("collective-permute", 80),
    ],
)
def test_what_a_device_of_eight_sends_for_eighty_bytes(kind, sent):
    assert hlo.sent_bytes(kind, 80, 8) == sent
    assert hlo.sent_bytes("all-reduce", 80, 1) == 0
    assert hlo.sent_bytes("all-reduce", 80, 0) == 160  # the group is not said


def test_buffers_are_those_of_top_level_operations(program):
    made = set(program.buffers())
    assert ("bf16", (ROWS, WIDTH)) in made
    assert ("bf16", (4 * ROWS, WIDTH)) not in made  # nobody holds all rows


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups={{1,3},{0,2}}", (1, 3)),
        ("source_target_pairs={{0,1},{1,0}}", (0, 1)),
    ],
)
def test_groups_are_read_in_every_notation(text, group):
    assert hlo._first_group(text) == group


def test_a_batch_axis_written_as_a_window_contracts_nothing():
    types = {"a": "bf16[3072,2,2048]", "b": "bf16[2,2048,4096]"}
    op = lambda window: hlo.Op(
        "c", "bf16[3072,4096,1]", "convolution", f"%a, %b), {window}dim_labels=b0f_0io->bf0"
    )
    contracted = hlo.matmul_flops(op("window={size=2}, "), types)
    assert contracted == 2 * 3072 * 4096 * 4096
    batch = hlo.matmul_flops(op("window={size=2 pad=1_1 lhs_dilate=2}, "), types)
    assert batch == 2 * 3072 * 4096 * 2048
