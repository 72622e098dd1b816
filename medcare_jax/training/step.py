"""One optimiser step of either stage, as a pure function to be jitted with shardings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from medcare_jax.data.packing import Batch
from medcare_jax.models.decoder import Decoder, output_matrix
from medcare_jax.orthogonality import measure, overlap_penalty, project_tree, subspace_penalty
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, Tree, merge
from medcare_jax.settings import DTYPES, ConstraintSettings
from medcare_jax.sharding import gather, path_name, scatter
from medcare_jax.training.loss import next_tokens, summed_nll


class TrainState(NamedTuple):
    """Everything that a step changes or a checkpoint needs.

    Attributes:
      step: Batches done, int32.
      skipped: How many of them were left out, int32: loss, gradient or update was not finite.
      learning: The adapter trees that learn, by component, float32.
      optimizer: State of the optax chain.
      basis: For each tree that learns under a constraint, its knowledge subspace; else empty.
      key: Root of all randomness of the stage, uint32 key data. Never changes: step t uses
        `fold_in(key, t)`.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    learning: dict[str, Tree]
    optimizer: optax.OptState
    basis: dict[str, Tree]
    key: Array


class Metrics(NamedTuple):
    """What a step measured, all float32 scalars.

    Attributes:
      loss: Mean negative log-likelihood of the batch's target tokens, nats.
      penalty: The penalty before its weight, in the paper the sum over projections of
        |A_K^T A_O|; 0 without one.
      grad_norm: Global norm of the gradient before clipping.
      tokens: Number of tokens that are not padding.
      targets: Number of target tokens.
      skipped: Steps left out so far, this one included.
      leak: Largest ||Q^T A|| / ||A|| over constrained projections, after the step.
      removed: Share of the update's squared norm that the projection took away.
      cosine: Of the smallest principal angle to the protected subspace, over all projections.
      overlap: Mean squared cosine of all principal angles.
      rank: Mean effective rank outside the protected subspace.
    """

    loss: Float[Array, ""]
    penalty: Float[Array, ""]
    grad_norm: Float[Array, ""]
    tokens: Float[Array, ""]
    targets: Float[Array, ""]
    skipped: Float[Array, ""]
    leak: Float[Array, ""]
    removed: Float[Array, ""]
    cosine: Float[Array, ""]
    overlap: Float[Array, ""]
    rank: Float[Array, ""]


TrainStep = Callable[[TrainState, dict[str, Tree], Batch], tuple[TrainState, Metrics]]


def make_state(
    learning: dict[str, Tree],
    optimizer: optax.GradientTransformation,
    key: Array,
    basis: dict[str, Tree],
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        learning=learning,
        optimizer=optimizer.init(learning),
        basis=basis,
        key=jax.random.key_data(key),
    )


def make_train_step(
    decoder: Decoder,
    optimizer: optax.GradientTransformationExtraArgs,
    constraint: ConstraintSettings | None,
    *,
    accumulation: int,
    loss_chunk: int,
) -> TrainStep:
    """The step `(state, frozen, batch) -> (state, metrics)`.

    Gradients exist for `state.learning` only. The loss is the mean over the target tokens of
    the whole batch, however many microbatches it is cut into. A batch whose loss,
    gradient or update is not finite is left out on the device: adapters and optimiser stay as they
    were, to the bit, and only `step` and `skipped` count on.

    Args:
      decoder: The decoder with the stage's adapters.
      optimizer: The stage's chain.
      constraint: Whether the penalty is part of the loss; None in a stage without alignment.
      accumulation: Microbatches per step; divides the batch's rows.
      loss_chunk: Positions of a row whose logits exist at once.
    """
    summed = _summed_gradient(decoder, accumulation=accumulation, loss_chunk=loss_chunk)

    def step(
        state: TrainState, frozen: dict[str, Tree], batch: Batch
    ) -> tuple[TrainState, Metrics]:
        targets = jnp.sum(next_tokens(batch.tokens, batch.segments, batch.is_target).weights)
        share = 1.0 / jnp.maximum(targets, 1.0)
        loss, grads = jax.tree.map(lambda x: x * share, summed(state, frozen, batch))
        penalty, grads = _add_penalty(constraint, state, frozen, grads)
        grad_norm = optax.tree.norm(grads)
        new = _advance(state, optimizer, grads, (loss, grad_norm))
        metrics = Metrics(
            loss=loss,
            penalty=penalty,
            grad_norm=grad_norm,
            tokens=jnp.sum(batch.segments > 0, dtype=jnp.float32),
            targets=targets,
            skipped=new.skipped.astype(jnp.float32),
            removed=optax.tree.get(new.optimizer, "removed", jnp.zeros((), jnp.float32)),
            **measure(new.learning if state.basis else {}, state.basis)._asdict(),
        )
        return new, metrics

    return step


def _advance(
    state: TrainState,
    optimizer: optax.GradientTransformationExtraArgs,
    grads: Tree,
    norms: tuple[Float[Array, ""], ...],
) -> TrainState:
    """The state after the update; but for its counts as it was, if the norms or it are no number.

    A batch that gives none must not reach Adam's moments, which would never forget it, and an
    update that is none must not reach the adapters.
    """
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes in Adam's step count
        updates, optimizer_state = optimizer.update(
            grads, state.optimizer, state.learning, basis=state.basis
        )
    is_sound = jnp.all(jnp.isfinite(jnp.stack((*norms, optax.tree.norm(updates)))))
    learning, optimizer_state = jax.tree.map(
        lambda new, old: jnp.where(is_sound, new, old),
        (optax.apply_updates(state.learning, updates), optimizer_state),
        (state.learning, state.optimizer),
    )
    return state._replace(
        step=state.step + 1,
        skipped=state.skipped + (~is_sound).astype(jnp.int32),
        learning=learning,
        optimizer=optimizer_state,
    )


def _summed_gradient(
    decoder: Decoder, *, accumulation: int, loss_chunk: int
) -> Callable[[TrainState, dict[str, Tree], Batch], tuple[Array, dict[str, Tree]]]:
    """A function to the batch's summed loss and its gradient for the learning trees, float32."""

    def nll(learning: dict[str, Tree], frozen: dict[str, Tree], batch: Batch, key: Array) -> Array:
        params = merge({**frozen, **learning})
        rngs = {"dropout": key} if decoder.adapters.dropout > 0 else {}
        hidden = decoder.apply(
            {"params": params}, batch.tokens, batch.positions, batch.segments, rngs=rngs
        )
        targets = next_tokens(batch.tokens, batch.segments, batch.is_target)
        return summed_nll(hidden, output_matrix(params), targets, chunk=loss_chunk)

    def summed(
        state: TrainState, frozen: dict[str, Tree], batch: Batch
    ) -> tuple[Array, dict[str, Tree]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        dtype = DTYPES[decoder.compute.adapter_dtype]
        learning = working_copy(state.learning, dtype)
        others = {BASE: frozen[BASE]} | {
            name: working_copy(tree, dtype) for name, tree in frozen.items() if name != BASE
        }

        def value_and_grad(part: Batch, part_key: Array) -> tuple[Array, Tree]:
            value, slope = jax.value_and_grad(nll)(learning, others, part, part_key)
            return value, scatter(jax.tree.map(lambda g: g.astype(jnp.float32), slope))

        return accumulate(value_and_grad, batch, key, accumulation)

    return summed


def _add_penalty(
    constraint: ConstraintSettings | None,
    state: TrainState,
    frozen: dict[str, Tree],
    grads: dict[str, Tree],
) -> tuple[Array, dict[str, Tree]]:
    """The penalty before its weight, and the gradient with it; 0 and the same without one."""
    if constraint is None or not constraint.use_penalty:
        return jnp.zeros((), jnp.float32), grads

    def penalty(learning: dict[str, Tree]) -> Array:
        return penalty_of(constraint, {**frozen, **learning}, state.basis)

    overlap, slope = jax.value_and_grad(penalty)(state.learning)
    if constraint.use_projection:
        # What will be projected out of the update must not fill Adam's moments first.
        slope = project_tree(slope, state.basis, strength=constraint.strength)
    return overlap, jax.tree.map(lambda g, p: g + constraint.penalty_weight * p, grads, slope)


def penalty_of(
    constraint: ConstraintSettings, trees: dict[str, Tree], basis: dict[str, Tree]
) -> Float[Array, ""]:
    """The penalty before its weight.

    On the span of the knowledge it is the paper's, of the factors themselves, so that it moves
    the knowledge too where that learns; on any other basis what lies inside that.
    """
    norm: Any = constraint.penalty_norm
    if constraint.basis != "span":
        return subspace_penalty({ALIGNMENT: trees[ALIGNMENT]}, basis, norm=norm)
    side: Any = constraint.side
    return overlap_penalty(trees[KNOWLEDGE], trees[ALIGNMENT], norm=norm, side=side)


def working_copy(adapters: Tree, dtype: jnp.dtype) -> Tree:
    """Adapters as the matmuls read them, cast and gathered once per step and not once per layer.

    Routers stay in float32: rounded ones would send tokens to other experts.
    """
    cast = lambda path, leaf: leaf if "router" in path_name(path) else leaf.astype(dtype)
    return dict(gather(jax.tree_util.tree_map_with_path(cast, adapters)))


def microbatches(batch: Batch, parts: int) -> Batch:
    """The batch cut into parts, stacked: [parts, rows / parts, t].

    Part i takes every parts-th row from i on, so that each device's rows stay its own.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)


def accumulate(
    value_and_grad: Callable[[Batch, Array], tuple[Array, Tree]],
    batch: Batch,
    key: Array,
    parts: int,
) -> tuple[Array, Tree]:
    """Sums values and gradients over microbatches, one after the other."""
    if parts == 1:
        return value_and_grad(batch, key)
    cut = microbatches(batch, parts)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(value_and_grad, jax.tree.map(lambda x: x[0], cut), key),
    )

    def add(
        total: tuple[Array, Tree], part: tuple[Batch, Array]
    ) -> tuple[tuple[Array, Tree], None]:
        return jax.tree.map(jnp.add, total, value_and_grad(*part)), None

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(parts))
    return jax.lax.scan(add, zeros, (cut, keys))[0]
