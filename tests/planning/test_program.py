"""The abstract step has the run's own trees, shapes, dtypes and places."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from medcare_jax.models.aggregators import MKA_COMPONENTS
from medcare_jax.models.decoder import Decoder
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, NOISE, flatten
from medcare_jax.planning import program
from medcare_jax.planning.bases import base_shape
from medcare_jax.sharding import ShardingError, make_mesh, tree_shardings
from medcare_jax.training.stages import init_adapters
from tests.planning.runs import FFN, HIDDEN, LAYERS, settings

ASKED = settings(**{"mesh.fsdp": 4, "mesh.tensor": 2, "base.dtype": "bfloat16"})


@functools.cache
def built(stage, **constraint):
    """The abstract step of a stage and its mesh."""
    changed = dataclasses.replace(ASKED.constraint, **constraint)
    asked = dataclasses.replace(ASKED, constraint=changed)
    mesh = make_mesh(asked.mesh)
    with jax.set_mesh(mesh):
        return program.build(asked, base_shape(asked.base)[0], stage, mesh), mesh


def widths(made):
    """Protected directions by projection and side, where there are any."""
    return {
        tuple(path.split("/")[-2:]): leaf.shape
        for path, leaf in flatten(made.state.basis[ALIGNMENT]).items()
        if leaf.size
    }


def test_the_aggregation_learns_knowledge_and_noise_over_a_frozen_base():
    made, _ = built("mka")
    assert set(made.frozen) == {BASE}
    assert set(made.state.learning) == {KNOWLEDGE, NOISE}
    assert made.state.basis == {}
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(made.frozen)}
    assert dtypes == {np.dtype("bfloat16")}
    decoder = Decoder(base_shape(ASKED.base)[0], ASKED.adapters, MKA_COMPONENTS, ASKED.compute)
    real = jax.eval_shape(functools.partial(init_adapters, decoder), jax.random.key(0))
    shape = lambda leaf: (leaf.shape, leaf.dtype)
    assert jax.tree.map(shape, made.state.learning) == jax.tree.map(shape, dict(real))


def test_the_alignment_learns_beside_frozen_knowledge_of_the_ffn_alone():
    made, _ = built("da", basis="span")
    assert set(made.frozen) == {BASE, KNOWLEDGE}
    assert set(made.state.learning) == {ALIGNMENT}
    assert not any("self_attn" in path for path in flatten(made.frozen[KNOWLEDGE]))
    rank = ASKED.adapters.rank * ASKED.adapters.shared_experts
    assert widths(made) == {
        ("gate_proj", "lora_a"): (LAYERS, HIDDEN, rank),
        ("up_proj", "lora_a"): (LAYERS, HIDDEN, rank),
        ("down_proj", "lora_a"): (LAYERS, FFN, rank),
    }


def test_the_basis_has_the_size_that_the_constraint_asks_for():
    rank = ASKED.adapters.rank * ASKED.adapters.shared_experts
    made, _ = built("da", side="output", basis="svd")
    assert widths(made) == {
        ("gate_proj", "lora_b"): (LAYERS, FFN, rank),
        ("up_proj", "lora_b"): (LAYERS, FFN, rank),
        ("down_proj", "lora_b"): (LAYERS, HIDDEN, rank),
    }
    made, _ = built("da", basis="activation", energy=0.5)
    assert widths(made) == {  # at most: half of the directions hold at least half of the energy
        ("gate_proj", "lora_a"): (LAYERS, HIDDEN, HIDDEN // 2),
        ("up_proj", "lora_a"): (LAYERS, HIDDEN, HIDDEN // 2),
        ("down_proj", "lora_a"): (LAYERS, FFN, FFN // 2),
    }


def test_moments_count_against_the_replicated_budget_as_in_the_run():
    made, mesh = built("mka")
    held = jax.tree.leaves((made.frozen, made.state.learning))
    whole = sum(
        leaf.size * leaf.dtype.itemsize for leaf in held if leaf.sharding.is_fully_replicated
    )
    budget = dataclasses.replace(ASKED.mesh, replicated_budget_mib=whole / 2**20)
    asked = dataclasses.replace(ASKED, mesh=budget)
    with jax.set_mesh(mesh), pytest.raises(ShardingError, match="optimizer/.*router_kernel"):
        program.build(asked, base_shape(asked.base)[0], "mka", mesh)


def test_every_argument_is_placed_by_the_rules():
    made, mesh = built("da")
    places = tree_shardings(mesh, (made.state, made.frozen))
    for leaf, place in zip(
        jax.tree.leaves((made.state, made.frozen)), jax.tree.leaves(places), strict=True
    ):
        assert leaf.sharding == place
    assert made.batch.tokens.sharding.shard_shape(made.batch.tokens.shape) == (1, 256)
