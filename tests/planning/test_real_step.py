"""What the TPU compiler makes of the real step of a small model; each count has a step it refuses.

The bad step makes every mistake at once: logits of whole rows, the base gathered once more, work
done twice. The learning base is the mistake that all the others follow from.
"""

import math
import os

import jax
import jax.numpy as jnp
import pytest

from medcare_jax.models import lora
from medcare_jax.models.flops import useful_flops
from medcare_jax.params import BASE
from medcare_jax.planning import hlo, program
from medcare_jax.planning.bases import base_shape
from medcare_jax.planning.topologies import compile_devices, parse
from medcare_jax.planning.worker import _ENVIRONMENT
from medcare_jax.sharding import make_mesh, tree_shardings
from medcare_jax.training.loop import jit_step
from medcare_jax.training.optimizer import make_optimizer
from medcare_jax.training.step import make_state, make_train_step
from tests.planning.runs import FFN, HIDDEN, VOCABULARY, settings

pytestmark = pytest.mark.slow

DEVICES, ROWS, LENGTH, CHUNK = 4, 8, 384, 48
GOOD = {
    "compute.remat": "none",
    "compute.loss_chunk": CHUNK,
    "data.rows": ROWS,
    "data.row_length": LENGTH,
}
BAD = {"compute.remat": "full", "compute.loss_chunk": LENGTH, "data.accumulation": 2}
KERNELS = {(HIDDEN, HIDDEN), (HIDDEN, FFN), (FFN, HIDDEN), (HIDDEN, VOCABULARY)}


@pytest.fixture(scope="module")
def devices():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k != "JAX_PLATFORMS"})
    return compile_devices(parse("v5e:2x2"))


def build(devices, stage, changes):
    """The abstract step, its settings and its mesh."""
    asked = settings(**{**GOOD, **changes})
    mesh = make_mesh(asked.mesh, devices)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return program.build(asked, base_shape(asked.base)[0], stage, mesh), asked, mesh


def compiled(devices, stage, **changes):
    """The step and what the compiler made of it."""
    built, _, mesh = build(devices, stage, changes)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return built, hlo.Program(built.compile().as_text())


@pytest.fixture(scope="module", params=["mka", "da"])
def good(request, devices):
    return compiled(devices, request.param)


@pytest.fixture(scope="module")
def bad(devices):
    return compiled(devices, "mka", **BAD)


@pytest.fixture(scope="module")
def learning_base(devices):
    """The step of MKA in which the base learns too."""
    built, asked, mesh = build(devices, "mka", {})
    optimizer = make_optimizer(asked.mka, 1000, constraint=None)
    step = make_train_step(
        built.decoder,
        optimizer,
        None,
        accumulation=asked.data.accumulation,
        loss_chunk=asked.compute.loss_chunk,
    )
    masters = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.float32), built.frozen[BASE])
    learning = {**built.state.learning, BASE: masters}
    state = jax.eval_shape(
        lambda learning: make_state(learning, optimizer, jax.random.key(0), {}), learning
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        places = tree_shardings(mesh, state)
        state = jax.tree.map(lambda leaf, at: leaf.update(sharding=at), state, places)
        step = jit_step(step, places, tree_shardings(mesh, built.frozen), mesh)
        return hlo.Program(step.lower(state, built.frozen, built.batch).compile().as_text())


def weight_gradients(made):
    """Shapes of all products that have the shape of a base kernel, either way round."""
    found = []
    for op, _, _, _ in made.visit():
        if op.opcode not in ("convolution", "dot"):
            continue
        shape = sorted(size for size in hlo.shapes(op.type)[0][1] if size > 1)
        if any(shape == sorted(kernel) for kernel in KERNELS):
            found.append(tuple(shape))
    return found


def test_no_gradient_of_a_base_weight_is_computed(good, learning_base):
    assert weight_gradients(good[1]) == []
    assert len(weight_gradients(learning_base)) >= 7


def logits(made):
    """The most positions whose logits any buffer holds; embedding and output matrix are none."""
    sizes = [
        math.prod(shape) // VOCABULARY
        for _, shape in made.buffers()
        if VOCABULARY in shape and not {HIDDEN, HIDDEN // DEVICES} & set(shape)
    ]
    return max(sizes, default=0)


def test_logits_exist_for_a_chunk_of_each_row_alone(good, bad):
    most = ROWS // DEVICES * CHUNK
    assert 0 < logits(good[1]) <= most
    assert logits(bad[1]) > most


def gathered(made):
    """Bytes that a device gathers in a step."""
    found = [each for each in hlo.count(made).collectives if each.kind == "all-gather"]
    return sum(each.bytes for each in found)


def limit(built):
    """Bytes of two gathers of the layers, one of embedding, head and adapters, in bfloat16."""
    size = lambda tree: 2 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    base = built.frozen[BASE]
    adapters = [tree for name, tree in built.frozen.items() if name != BASE]
    return 2 * size(base["model"]["layers"]) + size(
        (base["model"]["embed_tokens"], base["lm_head"], built.state.learning, adapters)
    )


def test_layers_are_gathered_twice_at_the_most_and_all_else_once(good, bad):
    assert 0 < gathered(good[1]) <= limit(good[0])
    assert gathered(bad[1]) > limit(bad[0])


def performed(made):
    counts = hlo.count(made)
    return counts.matmul_flops + counts.kernel_flops


def expected(built):
    """FLOP of a device: attention's backward kernel does five matmuls where four would do.

    Queries and keys are turned by a matmul of each head, forward and backward, which is a
    twentieth of this small model's work and half a hundredth of a 7B model's.
    """
    length, s = built.batch.tokens.shape[1], built.decoder.settings
    without, useful = useful_flops(built.decoder, 0), useful_flops(built.decoder, length)
    turns = 2 * 2 * s.num_layers * (s.num_heads + s.num_kv_heads) * s.head_dim**2
    work = without + (useful - without) * 7 / 6 + turns
    return work * built.batch.tokens.size / DEVICES


def test_the_work_is_the_counted_work(good, bad):
    assert performed(good[1]) == pytest.approx(expected(good[0]), rel=0.02)
    assert performed(bad[1]) > 1.1 * expected(bad[0])


def rings(made):
    """Permutes of a device, which the compiler makes of sums that it rings through a matmul."""
    found = [each for each in hlo.count(made).collectives if each.kind == "collective-permute"]
    return sum(each.count for each in found)


@pytest.mark.parametrize("stage", ["mka", "da"])
def test_adapter_gradients_are_summed_at_once_and_not_ringed(devices, stage, monkeypatch):
    many = compile_devices(parse("v5e:4x4"))  # of four chips the compiler makes no ring
    assert rings(compiled(many, stage, **{"data.rows": len(many)})[1]) == 0
    monkeypatch.setattr(lora, "gather", lambda tree: tree)
    assert rings(compiled(many, stage, **{"data.rows": len(many)})[1]) > 0
