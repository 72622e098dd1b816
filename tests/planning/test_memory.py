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


def test_three_remedies_and_none_that_is_taken_already():
    changed = settings(**{"compute.remat": "products", "mesh.data": 2, "mesh.fsdp": 2})
    remedies = memory.remedies(changed, NEEDS, rows=2, devices=4)
    assert [text.split("=")[0] for text in remedies] == [
        "--config.compute.remat",
        "--config.data.accumulation",
        "--config.mesh.data",
    ]
    bare = settings(**{"compute.remat": "full", "compute.loss_chunk": 64})
    remedies = memory.remedies(bare, NEEDS, rows=1, devices=4)
    assert [text.split(":")[0] for text in remedies] == [
        "a slice of 8 devices",
        "--config.mesh.tensor=2",
    ]
