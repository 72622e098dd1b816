"""The train step of a stage with abstract arguments: what the run compiles, without any weights.

Everything comes from the functions that the run itself calls; only the arrays are missing.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medcare_jax.data.packing import Batch
from medcare_jax.models.aggregators import FFN_PROJECTIONS, MKA_COMPONENTS, NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import DecoderSettings
from medcare_jax.orthogonality import extend_basis
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, Tree
from medcare_jax.settings import DTYPES, ConstraintSettings, Settings
from medcare_jax.sharding import batch_sharding, check_replicated, tree_shardings
from medcare_jax.training.activations import widest_basis
from medcare_jax.training.loop import jit_step
from medcare_jax.training.optimizer import make_optimizer
from medcare_jax.training.stages import (
    MKA,
    alignment_stage,
    init_adapters,
    protected_basis,
    select,
)
from medcare_jax.training.step import TrainState, make_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A step ready to be lowered.

    Attributes:
      decoder: With the adapters of the stage.
      step: The jitted step.
      state: Abstract state, with shardings.
      frozen: Abstract trees that do not learn, with shardings.
      batch: An abstract batch, with shardings.
    """

    decoder: Decoder
    step: Any
    state: TrainState
    frozen: dict[str, Tree]
    batch: Batch

    def compile(self) -> Any:
        """The compiled step, for the platform of the mesh."""
        return self.step.lower(self.state, self.frozen, self.batch).compile()


def build(settings: Settings, decoder: DecoderSettings, stage: str, mesh: Mesh) -> Program:
    """The step of a stage (`mka` or `da`) on a mesh, which must be the current one.

    Raises:
      ShardingError: A leaf cannot be placed, or too much is replicated.
    """
    model, state, frozen, step = _abstract_step(settings, decoder, stage)
    check_replicated(mesh, (frozen, state), budget_mib=settings.mesh.replicated_budget_mib)
    places = (tree_shardings(mesh, state), tree_shardings(mesh, frozen))
    rows = jax.ShapeDtypeStruct(
        (settings.data.rows, settings.data.row_length), jnp.int32, sharding=batch_sharding(mesh)
    )
    return Program(
        model,
        jit_step(step, *places, mesh),
        _placed(state, places[0]),
        _placed(frozen, places[1]),
        Batch(rows, rows, rows, rows.update(dtype=jnp.bool_)),
    )


def abstract_base(settings: Settings, decoder: DecoderSettings) -> Tree:
    """Shapes and dtypes of the base."""
    plain = Decoder(decoder, settings.adapters, NO_ADAPTERS, settings.compute)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(plain.init, jax.random.key(0), tokens, tokens, tokens)["params"]
    dtype = DTYPES[settings.base.dtype]
    return {name: _cast(tree, dtype) for name, tree in params.items()}


def _abstract_step(
    settings: Settings, decoder: DecoderSettings, stage: str
) -> tuple[Decoder, TrainState, dict[str, Tree], Any]:
    """Model, state, frozen trees and the step function, none of them placed."""
    s, key = settings, jax.random.key(0)
    base = abstract_base(s, decoder)
    aggregation = Decoder(decoder, s.adapters, MKA_COMPONENTS, s.compute)
    adapters = jax.eval_shape(functools.partial(init_adapters, aggregation), key)
    basis: dict[str, Tree] = {}
    model, recipe, frozen, learning = aggregation, s.mka, {BASE: base}, adapters
    if stage != MKA.name:
        alignment = alignment_stage(s.adapters, s.constraint)
        model = Decoder(decoder, s.adapters, alignment.components, s.compute)
        trees = jax.eval_shape(functools.partial(init_adapters, model), key)
        trees[KNOWLEDGE] = select(adapters[KNOWLEDGE], FFN_PROJECTIONS)
        recipe, everything = s.da, {BASE: base, **trees}
        learning = {name: everything[name] for name in alignment.learning}
        frozen = {name: tree for name, tree in everything.items() if name not in learning}
        basis = _abstract_basis(s.constraint, trees[KNOWLEDGE], trees[ALIGNMENT], learning)
    constraint = s.constraint if basis else None
    optimizer = make_optimizer(recipe, 1000, constraint=constraint)
    step = make_train_step(
        model,
        optimizer,
        constraint,
        accumulation=s.data.accumulation,
        loss_chunk=s.compute.loss_chunk,
    )
    state = jax.eval_shape(
        lambda learning, basis: make_state(learning, optimizer, key, basis), learning, basis
    )
    return model, state, frozen, step


def _abstract_basis(
    constraint: ConstraintSettings, knowledge: Tree, alignment: Tree, learning: dict[str, Tree]
) -> dict[str, Tree]:
    """The largest subspace that the run may find at the hand-over."""
    side: Any = constraint.side
    data_basis = widest_basis(alignment, energy=constraint.energy, side=side)

    def extended(knowledge: Tree, alignment: Tree, data_basis: Tree) -> dict[str, Tree]:
        basis = extend_basis(protected_basis(knowledge, constraint, data_basis), alignment)
        return dict(extend_basis({ALIGNMENT: basis}, learning))

    basis: dict[str, Tree] = jax.eval_shape(extended, knowledge, alignment, data_basis)
    return basis


def _cast(tree: Any, dtype: Any) -> Any:
    """The abstract tree in another dtype."""
    return jax.tree.map(lambda leaf: leaf.update(dtype=dtype), tree)


def _placed(tree: Any, shardings: Any) -> Any:
    """The abstract tree with its shardings."""
    return jax.tree.map(lambda leaf, place: leaf.update(sharding=place), tree, shardings)
