"""From settings to the optax chain of a stage; the projection, if any, is its last link."""

import math

import optax

from medcare_jax.orthogonality import project_updates, retract
from medcare_jax.settings import ConstraintSettings, StageSettings


def make_schedule(stage: StageSettings, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 over the warm-up, then cosine to 0."""
    # A stage of a single step must not be all warm-up: it would learn nothing.
    warmup = math.ceil(stage.warmup_share * total_steps) if total_steps > 1 else 0
    cosine = optax.cosine_decay_schedule(stage.learning_rate, max(1, total_steps - warmup))
    if warmup == 0:
        return cosine
    ramp = optax.linear_schedule(0.0, stage.learning_rate, warmup)
    return optax.join_schedules([ramp, cosine], [warmup])


def make_optimizer(
    stage: StageSettings, total_steps: int, *, constraint: ConstraintSettings | None
) -> optax.GradientTransformationExtraArgs:
    """Clipping, AdamW and, last, the projection off the knowledge subspace.

    If the constraint projects, `update` needs `basis=`, a tree like the updates. It comes after
    Adam's scaling, decay and learning rate, since each of those leaves the complement again.
    """
    links = [
        optax.adamw(
            make_schedule(stage, total_steps),
            b1=stage.adam_b1,
            b2=stage.adam_b2,
            weight_decay=stage.weight_decay,
        )
    ]
    if stage.clip_norm > 0:
        links.insert(0, optax.clip_by_global_norm(stage.clip_norm))
    if constraint is not None and constraint.use_projection:
        links.append(project_updates(strength=constraint.strength))
        if constraint.retract_every:
            links.append(retract(every_steps=constraint.retract_every))
    return optax.with_extra_args_support(optax.chain(*links))
