"""Bytes by kind, counted by hand; the compiler's refusals; what to change, cheapest first."""

import os
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE
from medcare_jax.planning import memory
from medcare_jax.planning.bases import base_shape
from medcare_jax.planning.topologies import compile_devices, parse
from medcare_jax.planning.worker import _ENVIRONMENT
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh
from tests.planning.runs import settings

NEEDS = memory.Memory(base=400, adapters=30, optimizer=20, batch=10, temporary=None, peak=None)


def test_each_kind_is_what_one_device_holds_of_it():
    mesh = make_mesh(MeshSettings(1, 4, 1), jax.devices()[:4])
    make = lambda shape, dtype, *axes: jax.ShapeDtypeStruct(
        shape, dtype, sharding=NamedSharding(mesh, P(*axes))
    )
    state = types.SimpleNamespace(
        learning={ALIGNMENT: make((8, 3), jnp.float32, "fsdp")},
        basis={ALIGNMENT: make((8, 2), jnp.float32)},
        optimizer=(make((8, 3), jnp.float32, "fsdp"), make((8, 3), jnp.float32, "fsdp")),
        step=make((), jnp.int32),
        key=make((2,), jnp.uint32),
    )
    frozen = {BASE: make((16, 5), jnp.bfloat16, "fsdp"), KNOWLEDGE: make((6,), jnp.float32)}
    program = types.SimpleNamespace(
        state=state, frozen=frozen, batch=make((4, 7), jnp.bool_, "fsdp")
    )
    assert memory.arguments(program) == memory.Memory(
        base=4 * 5 * 2,
        adapters=6 * 4 + 2 * 3 * 4 + 8 * 2 * 4,
        optimizer=2 * 2 * 3 * 4 + 4 + 8,
        batch=7,
        temporary=None,
        peak=None,
    )


def test_what_is_not_an_argument_is_temporary():
    assert memory.with_peak(NEEDS, 1000).temporary == 540
    assert memory.with_peak(NEEDS, 100).temporary == 0


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("XLA:TPU compile: Used 36.10G of 15.75G hbm. Exceeded by 20G", int(36.10 * 2**30)),
        ("Used 512.0M of 15.75G hbm", 512 * 2**20),
        (
            "memory required for HLO temporaries (22.50G) exceeds available HBM (15.75G).",
            int(22.5 * 2**30),
        ),
        ("Used 20.00M of 16.00M vmem", None),
        ("INTERNAL: no", None),
    ],
)
def test_the_compilers_refusal_is_read(message, found):
    assert memory.exhausted_bytes(message) == found


def test_the_refusal_of_the_compiler_that_is_installed_is_read():
    """Arguments of 1 GiB, 20 GiB that the program makes and 1 GiB that it returns."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k != "JAX_PLATFORMS"})
    mesh = make_mesh(MeshSettings(), compile_devices(parse("v5e:1x1")))
    x = jax.ShapeDtypeStruct((2**14, 2**14), jnp.float32, sharding=NamedSharding(mesh, P()))

    def hold(x):
        copies = jnp.broadcast_to(x, (20, *x.shape))
        return jax.lax.optimization_barrier(copies).sum(axis=0)

    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        jax.jit(hold).lower(x).compile()
    assert 21 * memory.GIB <= memory.exhausted_bytes(str(refused.value)) <= 24 * memory.GIB


def advice(rows, mesh, slices=1, **changes):
    """All remedies of a run on such a mesh; hidden 256, 2 heads, FFN 512."""
    asked = settings(**changes)
    sizes = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
    place = memory.Place(sizes, slices, base_shape(asked.base)[0], rows)
    return memory.remedies(asked, NEEDS, place)


BARE = {"compute.remat": "full", "compute.loss_chunk": 64}


def test_three_remedies_and_none_that_is_taken_already():
    changed = {"compute.remat": "products", "mesh.data": 2, "mesh.fsdp": 2}
    assert [text.split("=")[0] for text in advice(2, (2, 2, 1), **changed)] == [
        "--config.compute.remat",
        "--config.data.accumulation",
        "--config.mesh.data",
    ]
    assert [text.split(":")[0] for text in advice(1, (1, 4, 1), **BARE, **{"data.rows": 4})] == [
        "a slice of 8 devices with --config.data.rows=8",
        "--config.mesh.data=1 --config.mesh.fsdp=2 --config.mesh.tensor=2 "
        "--config.data.accumulation=2",
        "--config.data.row_length=128",
    ]


def test_rows_are_halved_only_where_they_can_be():
    text = advice(3, (1, 16, 1), **{"data.rows": 48}, **BARE)[0]
    assert text.startswith("--config.data.accumulation=3: 1 instead of 3 rows")
    assert advice(4, (1, 4, 1), **BARE, **{"data.rows": 16})[0].startswith(
        "--config.data.accumulation=2: 2 instead of 4 rows"
    )


def test_replicas_are_as_many_as_there_are_slices_at_least():
    asked = {**BARE, "mesh.data": 4, "mesh.fsdp": 2}
    flags = "--config.mesh.data=2 --config.mesh.fsdp=4 --config.mesh.tensor=1"
    assert advice(1, (4, 2, 1), slices=2, **asked)[0].startswith(flags)
    assert not any("mesh.data=1" in text for text in advice(1, (2, 4, 1), slices=2, **BARE))
    assert advice(1, (2, 4, 1), slices=2, **BARE)[0].startswith("2 slices of 8 devices with")


def test_a_mesh_that_cannot_cut_the_model_is_not_advised():
    assert not any("tensor=4" in text for text in advice(1, (1, 2, 2), **BARE))  # 2 heads
    assert not any("slice of" in text for text in advice(1, (1, 256, 1), **BARE))  # hidden 256


def test_more_devices_come_with_a_mesh_that_uses_them_for_the_base():
    fixed = {**BARE, "mesh.data": -1, "mesh.fsdp": 4, "data.accumulation": 2}
    assert advice(1, (1, 4, 1), **fixed)[0].startswith(
        "a slice of 8 devices with --config.mesh.data=1 --config.mesh.fsdp=8 "
        "--config.mesh.tensor=1 --config.data.accumulation=1: "
    )
