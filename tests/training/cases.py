"""Tiny stages for the tests of training: settings, trees, a batch, and a state to step from.

Every size is divisible by 8 where a mesh cuts it, and by nothing else that it could be mistaken
for: d 24, f 40, n x h 32, k x h 16, v 264 (the byte tokenizer's 259 and some), r 5, e 7.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medcare_jax.data.chat import Example
from medcare_jax.data.packing import Batch, pack_row, stack_rows
from medcare_jax.models.decoder import Decoder
from medcare_jax.orthogonality import extend_basis, orthonormal_basis, project_tree
from medcare_jax.params import ALIGNMENT, KNOWLEDGE, Tree, split
from medcare_jax.settings import ConstraintSettings, StageSettings
from medcare_jax.training.optimizer import make_optimizer
from medcare_jax.training.stages import MKA, Stage, alignment_stage
from medcare_jax.training.step import Metrics, TrainState, TrainStep, make_state, make_train_step
from tests.helpers import FLOAT32, TINY, TINY_ADAPTERS, random_params

SETTINGS = dataclasses.replace(
    TINY["qwen2"], vocab_size=264, hidden_size=24, intermediate_size=40, head_dim=8
)
ADAPTERS = dataclasses.replace(TINY_ADAPTERS, dropout=0.0)
RATES = StageSettings(learning_rate=1e-2, warmup_share=0.0, weight_decay=0.1, clip_norm=1.0)
DA = alignment_stage(ADAPTERS, ConstraintSettings())
DA_OPEN = alignment_stage(ADAPTERS, ConstraintSettings(freeze_knowledge=False))
ROWS, LENGTH = 8, 14
LOSS_CHUNK = 6


def stage_decoder(stage: Stage, *, dropout: float = 0.0) -> Decoder:
    """The decoder of a stage."""
    adapters = dataclasses.replace(ADAPTERS, dropout=dropout)
    return Decoder(SETTINGS, adapters, stage.components, FLOAT32)


def sequences(seed: int = 0) -> list[list[Example]]:
    """What each row holds: packed sequences of uneven lengths and target counts; one row is empty.

    The last row of each half holds few targets, so that a mean of microbatches' means is wrong.
    """
    random = np.random.default_rng(seed)
    plan = [[5, 6], [14], [3, 4, 7], [2], [9, 3], [], [13], [4]]
    rows = []
    for number, lengths in enumerate(plan):
        share = 0.15 if number % 2 else 0.8
        row = []
        for length in lengths:
            is_target = random.random(length) < share
            is_target[-1], is_target[0] = True, False
            row.append(Example(random.integers(1, 260, length, dtype=np.int32), is_target))
        rows.append(row)
    return rows


def make_batch(rows: list[list[Example]]) -> Batch:
    """The packed batch, b 8 and t 14 if the rows are those of `sequences`."""
    return stack_rows([pack_row(row, LENGTH) for row in rows])


class Case(NamedTuple):
    """A state, what stays frozen, and the step between, also compiled."""

    decoder: Decoder
    step: TrainStep
    compiled: Any
    state: TrainState
    frozen: dict[str, Tree]

    def run(self, *batches: Batch) -> tuple[TrainState, list[Metrics]]:
        """The state and metrics after a step on each batch."""
        state, rows = self.state, []
        for batch in batches:
            state, metrics = self.compiled(state, self.frozen, batch)
            rows.append(metrics)
        return state, rows

    def gradient(self, batch: Batch) -> dict[str, Tree]:
        """The gradient that a step of plain descent takes."""
        return jax.tree.map(jnp.subtract, self.state.learning, self.run(batch)[0].learning)


@functools.cache
def make_case(
    stage: Stage = MKA,
    *,
    kind: str = "none",
    descends: bool = False,
    accumulation: int = 1,
    dropout: float = 0.0,
    penalty_weight: float = 1.0,
) -> Case:
    """A stage before its first step, all parameters random; A in the complement if it has to be.

    With `descends` the update is the negative gradient itself, else that of the real optimiser.
    """
    decoder = stage_decoder(stage, dropout=dropout)
    trees = split(random_params(decoder, seed=4))
    constraint, basis = None, {}
    if ALIGNMENT in trees:
        constraint = ConstraintSettings(kind, "span", penalty_weight=penalty_weight)
        held = extend_basis(orthonormal_basis(trees[KNOWLEDGE]), trees[ALIGNMENT])
        basis = {ALIGNMENT: held}
        if constraint.use_projection:
            trees[ALIGNMENT] = project_tree(trees[ALIGNMENT], held)
    learning = {name: trees.pop(name) for name in stage.learning}
    basis = extend_basis(basis, learning) if basis else {}
    optimizer = make_optimizer(RATES, 20, constraint=constraint)
    if descends:
        optimizer = optax.with_extra_args_support(optax.sgd(1.0))
    step = make_train_step(
        decoder, optimizer, constraint, accumulation=accumulation, loss_chunk=LOSS_CHUNK
    )
    state = make_state(learning, optimizer, jax.random.key(9), basis)
    return Case(decoder, step, jax.jit(step), state, trees)


def assert_trees_close(found: Any, expected: Any, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Raises unless the trees agree; the tolerance is relative to each leaf's largest entry."""

    def compare(path: Any, a: Any, b: Any) -> None:
        bound = atol + rtol * float(np.max(np.abs(b), initial=0.0))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, found, expected)
