"""Between the stages: what DA begins with, and the pass over MKA's data that some bases need."""

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from medcare_jax import distributed
from medcare_jax.agreement import check_same
from medcare_jax.data.packing import Batch
from medcare_jax.models.aggregators import (
    ATTENTION_PROJECTIONS,
    KNOWLEDGE_COMPONENTS,
    MKA_COMPONENTS,
)
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.folding import rounded_away
from medcare_jax.orthogonality import is_whole
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, NOISE, Tree, digest, merge
from medcare_jax.run.context import Run
from medcare_jax.run.restore import read_basis
from medcare_jax.settings import ConstraintSettings
from medcare_jax.training.activations import (
    activation_basis,
    activation_covariance,
    activation_sketch,
    empty_sketch,
    refined_sketch,
)
from medcare_jax.training.loop import device_batches
from medcare_jax.training.stages import Handover, Stage, begin_alignment, init_adapters, select

_MUCH_LOST = 0.05  # of what the attention learned, by norm


def check_host(constraint: ConstraintSettings) -> None:
    """Raises unless what the hand-over computes on the host can be computed there.

    Raises:
      ValueError: JAX was told to leave the CPU out.
    """
    if not constraint.needs_data:
        return
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise ValueError(
            "constraint.basis = 'activation' is decomposed on the host's CPU, and JAX has none: "
            f"{error}; leave JAX_PLATFORMS unset, or add cpu to it, such as JAX_PLATFORMS=tpu,cpu"
        ) from None


def hand_over(run: Run, stage: Stage, trees: Mapping[str, Tree], key: jax.Array) -> Handover:
    """What the stage begins with after `base` and `knowledge`, under the run's constraint.

    A basis of data is not looked for again where the stage has a checkpoint: it is in there.
    """
    constraint, data_basis = run.settings.constraint, None
    if constraint.needs_data:
        data_basis = read_basis(run.workdir, stage.name)
        if data_basis is None:
            data_basis = _data_basis(run, stage, trees, jax.random.fold_in(key, 1))
    start = begin_alignment(
        trees, run.decoder(stage.components), key, constraint=constraint, data_basis=data_basis
    )
    _tell_merging(run, trees, start)
    return start


def _tell_merging(run: Run, trees: Mapping[str, Tree], start: Handover) -> None:
    """Says how much of what the attention had learned the base's dtype could not hold."""
    dtype = run.settings.base.dtype
    if dtype == "float32":
        return
    attention = {BASE: trees[BASE], KNOWLEDGE: select(trees[KNOWLEDGE], ATTENTION_PROJECTIONS)}
    lost = rounded_away(merge(attention), start.base, run.settings.adapters)
    remedy = "; base.dtype = 'float32' keeps it" if lost > _MUCH_LOST else ""
    run.display.line(
        f"{'WARNING: ' if remedy else ''}attention merged into the {dtype} base: {lost:.1%} of "
        f"what it had learned was rounded away{remedy}"
    )


def covariance(run: Run, stage: Stage, trees: Mapping[str, Tree]) -> Tree:
    """Of what the stage's alignment will read on MKA's data, in the model that MKA leaves."""
    side: Any = run.settings.constraint.side
    like = _alignment(run, stage)
    parts = run.settings.data.accumulation
    return activation_covariance(
        *_collecting(run, stage, trees), like, run.mesh, side=side, accumulation=parts
    )


def _data_basis(run: Run, stage: Stage, trees: Mapping[str, Tree], key: jax.Array) -> Tree:
    """Of that covariance; where layers are too wide for it, from two passes over the data."""
    constraint = run.settings.constraint
    side: Any = constraint.side
    empty = empty_sketch(_alignment(run, stage), key, side=side)
    collect = functools.partial(
        activation_sketch, mesh=run.mesh, accumulation=run.settings.data.accumulation
    )
    found = collect(*_collecting(run, stage, trees), empty)
    if not is_whole(found):
        found = collect(*_collecting(run, stage, trees), refined_sketch(found, run.mesh))
    basis = activation_basis(found, run.mesh, energy=constraint.energy)
    check_same("the basis of activations", digest(basis))
    widths = [q.shape[-1] for q in jax.tree.leaves(basis)]
    run.display.line(
        f"basis: at most {max(widths)} directions a layer hold {constraint.energy:.0%}"
    )
    return basis


def _alignment(run: Run, stage: Stage) -> Tree:
    """The shapes of the stage's alignment."""
    decoder = run.decoder(stage.components)
    return jax.eval_shape(lambda: init_adapters(decoder, jax.random.key(0))[ALIGNMENT])


def _collecting(
    run: Run, stage: Stage, trees: Mapping[str, Tree]
) -> tuple[Decoder, dict[str, Tree], Iterator[Batch]]:
    """What the stage keeps of MKA's model, and `constraint.activation_batches` batches of MKA.

    Their order is drawn by the seed.
    """
    keeps_noise = NOISE in stage.components.ffn
    components = MKA_COMPONENTS if keeps_noise else KNOWLEDGE_COMPONENTS
    return (
        run.decoder(components),
        {name: trees[name] for name in (BASE, *components.ffn)},
        _until_told(run, min(run.settings.constraint.activation_batches, run.data.mka.num_batches)),
    )


def _until_told(run: Run, total: int) -> Iterator[Batch]:
    """So many batches of MKA, shown as they go by.

    Raises StoppedEarly before the next one once the run is told to end.
    """
    batches = itertools.islice(device_batches(run.data.mka, run.mesh, 0), total)
    with run.display.bar("basis, from batches of MKA", total) as bar:
        bar.begin(0)
        for number, batch in enumerate(batches, start=1):
            if distributed.must_stop():
                raise distributed.StoppedEarly("stopped at the hand-over; all of MKA is kept")
            yield batch
            bar.update(number, {})
