"""The grades of a task's items as its scores: over all items, per type, with intervals."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from medcare_jax.evaluation.metrics import (
    Estimate,
    Statistic,
    estimate,
    estimate_of,
    interval_of,
    mean,
    point,
    ratio,
    resampled,
)
from medcare_jax.evaluation.results import MetricScore, Results, TypeScore, items_digest
from medcare_jax.evaluation.scoring import Rules
from medcare_jax.evaluation.scoring import cblue_score as cblue
from medcare_jax.evaluation.tasks import TASKS, TaskSpec


class Graded(NamedTuple):
    """What is kept of an item once it is graded; `parsed` and `gold` of labels only."""

    id: str
    type: str
    scores: dict[str, float]
    counts: tuple[float, ...]
    parsed: Any
    gold: Any


def summarise(
    spec: TaskSpec, graded: Sequence[Graded], rules: Rules, *, seed: int
) -> dict[str, MetricScore]:
    """All metrics of a task, the headline first.

    Args:
      spec: the task.
      graded: at least one item, in the task's order.
      rules: see the package `scoring`.
      seed: of the bootstrap.
    """
    if spec.family == "cblue":
        return {spec.metric: _cblue(graded, rules, seed)}
    if spec.family == "findings":
        return {
            name: _over_types(graded, functools.partial(_findings, place=place), seed)
            for place, name in enumerate(("f1", "precision", "recall"))
        }
    names = dict.fromkeys(name for g in graded for name in g.scores)
    found = {name: _mean(graded, name, seed) for name in names}
    if spec.family == "label":
        found["macro_f1"] = _over_types(graded, lambda mine: _labels(mine, rules), seed)
    return {name: found[name] for name in sorted(found, key=lambda name: name != spec.metric)}


def score_lines(results: Results) -> list[str]:
    """A line per task and protocol: its headline metric with the interval, in per cent."""
    lines = []
    for name in TASKS:
        entry = results["tasks"].get(name)
        for protocol, asked in entry["protocols"].items() if entry else ():
            found = asked["scores"].get(entry["metric"]) if entry else None
            if entry and found:
                lines.append(
                    f"  {name:<16} {protocol:<11} {entry['metric']:<12} "
                    f"{100 * found['score']:5.1f} % ({100 * found['low']:.1f} to "
                    f"{100 * found['high']:.1f}), {entry['items']} items"
                )
    return lines


def cblue_statistic(task: str, graded: Sequence[Graded], rules: Rules) -> Statistic:
    """The headline of one CBLUE task."""
    family = cblue.TASKS[task].family
    if family == "findings":
        return _findings(graded, 0)
    if family == "text":
        return ratio([g.counts[0] for g in graded], [g.counts[1] for g in graded])
    if family == "weighted" and rules == "strict":
        return mean([g.scores["accuracy"] for g in graded])
    return _labels(graded, rules, weighted=family == "weighted")


def _mean(graded: Sequence[Graded], name: str, seed: int) -> MetricScore:
    """A metric that is a mean over the items that have it: only some gold is JSON, say."""
    having = [g for g in graded if name in g.scores]
    outcomes = [g.scores[name] for g in having]
    types = _types(having, lambda mine: sum(g.scores[name] for g in mine) / len(mine))
    return _entry(estimate(outcomes, seed=seed), types, having, outcomes)


def _over_types(
    graded: Sequence[Graded], statistic: Callable[[Sequence[Graded]], Statistic], seed: int
) -> MetricScore:
    """A metric of all items together."""
    types = _types(graded, lambda mine: point(statistic(mine)))
    return _entry(estimate_of(statistic(graded), seed=seed), types, graded)


def _cblue(graded: Sequence[Graded], rules: Rules, seed: int) -> MetricScore:
    """The mean over the tasks that there are; each is resampled by itself."""
    by_type = _grouped(graded)
    order = [task for task in cblue.TASKS if task in by_type]
    statistics = {task: cblue_statistic(task, by_type[task], rules) for task in order}
    points = {task: point(statistic) for task, statistic in statistics.items()}
    draws = [resampled(each, seed=seed + i) for i, each in enumerate(statistics.values())]
    score = sum(points.values()) / len(points)
    types: dict[str, TypeScore] = {
        task: {"score": points[task], "items": len(by_type[task])} for task in order
    }
    return _entry(interval_of(score, np.mean(draws, axis=0), len(graded)), types, graded)


def _findings(graded: Sequence[Graded], place: int) -> Statistic:
    """F1, precision or recall (by place) of the findings of all items together."""

    def score(sums: Float[np.ndarray, "*r 3"]) -> Float[np.ndarray, "*r"]:
        right, superfluous, missed = np.moveaxis(sums, -1, 0)
        said, true = right + superfluous, right + missed
        below = (said + true, said, true)[place]
        return _divided(right * (2 if place == 0 else 1), below)

    return Statistic(np.asarray([g.counts for g in graded], np.float64), score)


def _labels(graded: Sequence[Graded], rules: Rules, *, weighted: bool = False) -> Statistic:
    """Macro or weighted F1 of labels, as `scoring/f1.py`; `strict` is over the gold's labels."""
    gold = [str(g.gold) for g in graded]
    said = ["" if g.parsed is None else str(g.parsed) for g in graded]
    names = sorted(set(gold) if rules == "strict" else {*gold, *said})
    true = np.asarray([[g == name for name in names] for g in gold], np.float64)
    given = np.asarray([[s == name for name in names] for s in said], np.float64)

    def score(sums: Float[np.ndarray, "*r 3k"]) -> Float[np.ndarray, "*r"]:
        hits, said_of, true_of = np.split(sums, 3, axis=-1)
        f1 = _divided(2 * hits, said_of + true_of)
        occurs = true_of if rules == "strict" else said_of + true_of
        weights = true_of if weighted else (occurs > 0).astype(np.float64)
        return _divided((f1 * weights).sum(-1), weights.sum(-1))

    return Statistic(np.concatenate([true * given, given, true], axis=1), score)


def _grouped(graded: Sequence[Graded]) -> dict[str, list[Graded]]:
    """Items by type."""
    groups: dict[str, list[Graded]] = {}
    for each in graded:
        groups.setdefault(each.type, []).append(each)
    return groups


def _types(
    graded: Sequence[Graded], score: Callable[[list[Graded]], float]
) -> dict[str, TypeScore]:
    """The score of each type, by name."""
    return {
        name: {"score": score(mine), "items": len(mine)}
        for name, mine in sorted(_grouped(graded).items())
    }


def _entry(
    found: Estimate,
    types: dict[str, TypeScore],
    graded: Sequence[Graded],
    outcomes: Sequence[float] = (),
) -> MetricScore:
    """A metric as results hold it."""
    return {
        "score": found.score,
        "low": found.low,
        "high": found.high,
        "types": types,
        "outcomes": list(outcomes),
        "items": items_digest((g.type, g.id) for g in graded),
    }


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """A quotient; 0 where there is nothing to divide by."""
    quotient: np.ndarray = np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)
    return quotient
