"""Between the stages: what DA begins with, and the pass over MKA's data that some bases need."""

import itertools
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax

from medcare_jax.models.aggregators import KNOWLEDGE_COMPONENTS
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, Tree
from medcare_jax.run.context import Run
from medcare_jax.training.activations import activation_covariance, activation_sketch
from medcare_jax.training.loop import device_batches
from medcare_jax.training.stages import Handover, Stage, begin_alignment, init_adapters

_Collected = TypeVar("_Collected")


def hand_over(run: Run, stage: Stage, trees: Mapping[str, Tree], key: jax.Array) -> Handover:
    """What the stage begins with after `base` and `knowledge`, under the run's constraint."""
    constraint = run.settings.constraint
    return begin_alignment(
        trees,
        run.decoder(stage.components),
        key,
        constraint=constraint,
        sketch=(
            _pass_over_data(activation_sketch, run, stage, trees, jax.random.fold_in(key, 1))
            if constraint.basis == "activation"
            else None
        ),
    )


def covariance(run: Run, stage: Stage, trees: Mapping[str, Tree]) -> Tree:
    """Of what the stage's alignment will read on MKA's data, in the model that MKA leaves."""
    return _pass_over_data(activation_covariance, run, stage, trees)


def _pass_over_data(
    collect: Callable[..., _Collected],
    run: Run,
    stage: Stage,
    trees: Mapping[str, Tree],
    *args: jax.Array,
) -> _Collected:
    """What is collected from the first `constraint.activation_batches` batches of MKA.

    Their order is drawn by the seed.
    """
    constraint = run.settings.constraint
    alignment = jax.eval_shape(
        lambda: init_adapters(run.decoder(stage.components), jax.random.key(0))[ALIGNMENT]
    )
    batches = device_batches(run.data.mka, run.mesh, 0)
    return collect(
        run.decoder(KNOWLEDGE_COMPONENTS),
        {BASE: trees[BASE], KNOWLEDGE: trees[KNOWLEDGE]},
        itertools.islice(batches, constraint.activation_batches),
        alignment,
        run.mesh,
        *args,
        side=constraint.side,
    )
