"""What is measured of a cell: scores and NLL of every task, angles, effect on knowledge inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from medcare_jax import distributed
from medcare_jax.data.pipeline import TrainingBatches, make_batches
from medcare_jax.evaluation.asking import Subject
from medcare_jax.evaluation.evaluator import evaluate
from medcare_jax.evaluation.likelihood import dialogue_nll
from medcare_jax.evaluation.results import headline
from medcare_jax.evaluation.tasks import Task
from medcare_jax.models.aggregators import FFN_PROJECTIONS, Components
from medcare_jax.orthogonality import (
    activation_effect,
    covariance_basis,
    extend_basis,
    measure,
    narrow_basis,
    orthonormal_basis,
    overlap_energy,
    principal_cosines,
    product_basis,
    project_tree,
)
from medcare_jax.params import ALIGNMENT, KNOWLEDGE, Tree, digest, flatten, merge
from medcare_jax.run.context import Run
from medcare_jax.run.facts import versions
from medcare_jax.run.outputs import options_of, run_model
from medcare_jax.training.loop import device_batches
from medcare_jax.training.stages import select

ENERGIES = (0.5, 0.8, 0.9, 0.95, 0.99)


def task_scores(run: Run, components: Components, trees: dict[str, Tree]) -> dict[str, Any]:
    """By task: its kind, its headline score, the outcomes per item, and NLL per gold token."""
    decoder, params = run.decoder(components), merge(trees)

    def stop_if_told(what: str, items: int) -> None:
        if distributed.must_stop():
            raise distributed.StoppedEarly(f"stopped while scoring {what}; what is done is kept")

    found = evaluate(
        Subject(decoder, params, run.base.tokenizer),
        run_model(run, run.workdir.name, trees, weights=digest(params)),
        run.data.tasks,
        options_of(run.settings),
        run.workdir / "evaluation",
        versions=versions(),
        write_samples=False,
        is_writer=distributed.is_first(),
        on_done=stop_if_told,
    )
    scores = {}
    for task in run.data.tasks:
        main = headline(found["tasks"][task.name])
        if main is None:
            raise ValueError(f"task {task.name!r} has no score: it waits for a judge")
        nll = dialogue_nll(decoder, params, device_batches(_gold(run, task), run.mesh, 0))
        scores[task.name] = {
            "kind": task.spec.kind,
            "metric": task.spec.metric,
            "score": main["score"],
            "outcomes": main["outcomes"],
            "nll": nll.mean,
        }
    return scores


def overlap_with_knowledge(trees: Mapping[str, Tree]) -> dict[str, float]:
    """How the alignment stands to the span of the knowledge's A, whatever the cell's basis."""
    alignment = select(trees[ALIGNMENT], FFN_PROJECTIONS)
    basis = extend_basis(orthonormal_basis(trees[KNOWLEDGE]), alignment)
    return {name: float(value) for name, value in measure(alignment, basis)._asdict().items()}


def geometry(start: Tree, alignment: Tree, knowledge: Tree, covariance: Tree) -> dict[str, Any]:
    """Natural angles of a free alignment, and what each basis would take of its effect.

    Args:
      start: The alignment before DA.
      alignment: The alignment after DA without a constraint, of the FFN.
      knowledge: Of the FFN.
      covariance: Of the FFN's inputs on MKA's data, in MKA's model.

    Returns:
      `angles`: largest cosine (median and largest over matrices) and mean squared cosine between
      the spans of A, before and after DA, and the mean squared cosine of random subspaces.
      `bases`: by name, the mean width as a share of the space, the share of the alignment's A
      inside, and the share of ||X dW|| on knowledge inputs that projecting it out removes.
    """
    span = orthonormal_basis(knowledge)
    bases = {"span": span, "svd 0.95": product_basis(knowledge, energy=0.95)}
    widest = covariance_basis(covariance, energy=max(ENERGIES))
    bases |= {f"activation {e:g}": narrow_basis(widest, covariance, energy=e) for e in ENERGIES}
    before = _total(activation_effect(alignment, covariance))
    return {
        "angles": {
            "before": _angles(span, start),
            "after": _angles(span, alignment),
            "random": _random_overlap(span),
        },
        "bases": {
            name: _removed(basis, alignment, covariance, before) for name, basis in bases.items()
        },
    }


def _angles(span: Tree, alignment: Tree) -> dict[str, float]:
    """Of all matrices, from the span of A."""
    own = orthonormal_basis(alignment)
    largest = np.concatenate([np.ravel(c[..., 0]) for c in principal_cosines(span, own).values()])
    energy = np.concatenate([np.ravel(e) for e in overlap_energy(span, own).values()])
    return {
        "median_cosine": float(np.median(largest)),
        "largest_cosine": float(largest.max()),
        "overlap": float(energy.mean()),
    }


def _random_overlap(span: Tree) -> float:
    """The mean squared cosine that random subspaces of these sizes would have."""
    return float(np.mean([q.shape[-1] / q.shape[-2] for q in jax.tree.leaves(span) if q.shape[-1]]))


def _removed(basis: Tree, alignment: Tree, covariance: Tree, before: float) -> dict[str, float]:
    """What projecting the alignment off a basis does to it."""
    basis = extend_basis(basis, alignment)
    found = measure(alignment, basis)
    after = _total(activation_effect(project_tree(alignment, basis), covariance))
    directions = {p: (np.linalg.norm(q, axis=-2) > 0.5).sum(-1) for p, q in flatten(basis).items()}
    widths = [
        np.mean(count) / flatten(basis)[path].shape[-2]
        for path, count in directions.items()
        if flatten(basis)[path].shape[-1]
    ]
    return {
        "width": float(np.mean(widths)),
        "overlap": float(found.overlap),
        "effect_removed": 1.0 - after / before if before else 0.0,
    }


def _total(effects: Mapping[str, Any]) -> float:
    """The root of the summed squares over all projections and layers."""
    return float(np.sqrt(sum(np.sum(np.square(each)) for each in effects.values())))


def _gold(run: Run, task: Task) -> TrainingBatches:
    """A task's prompts with their right answers, packed; what is longer than a row is left out."""
    s = run.settings
    return make_batches(
        run.base.tokenizer,
        files=[task.path],
        row_length=s.data.row_length,
        rows=s.data.rows,
        epochs=1,
        targets="assistant",
        over_long="drop",
        on_bad_record=s.data.on_bad_record,
        seed=0,
    )
