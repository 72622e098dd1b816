"""Between the stages: what DA begins with, and the pass over MKA's data that some bases need."""

import itertools
from collections.abc import Mapping

import jax

from medcare_jax.models.aggregators import KNOWLEDGE_COMPONENTS
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, Tree
from medcare_jax.run.context import Run
from medcare_jax.training.activations import activation_covariance
from medcare_jax.training.loop import device_batches
from medcare_jax.training.stages import Handover, Stage, begin_alignment, init_adapters


def hand_over(run: Run, stage: Stage, trees: Mapping[str, Tree], key: jax.Array) -> Handover:
    """What the stage begins with after `base` and `knowledge`, under the run's constraint."""
    constraint = run.settings.constraint
    return begin_alignment(
        trees,
        run.decoder(stage.components),
        key,
        constraint=constraint,
        covariance=covariance(run, stage, trees) if constraint.basis == "activation" else None,
    )


def covariance(run: Run, stage: Stage, trees: Mapping[str, Tree]) -> Tree:
    """Of what the stage's alignment will read on MKA's data, in the model that MKA leaves.

    The first `constraint.activation_batches` batches of MKA, whose order is drawn by the seed.
    """
    constraint = run.settings.constraint
    alignment = jax.eval_shape(
        lambda: init_adapters(run.decoder(stage.components), jax.random.key(0))[ALIGNMENT]
    )
    batches = device_batches(run.data.mka, run.mesh, 0)
    return activation_covariance(
        run.decoder(KNOWLEDGE_COMPONENTS),
        {BASE: trees[BASE], KNOWLEDGE: trees[KNOWLEDGE]},
        itertools.islice(batches, constraint.activation_batches),
        alignment,
        run.mesh,
        side=constraint.side,  # type: ignore[arg-type]
    )
