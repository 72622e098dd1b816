"""Numbers of a study: what each cell keeps and gains, and paired differences with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from medcare_jax.evaluation.metrics import Estimate, difference_estimate
from medcare_jax.evaluation.tasks import ALIGNMENT, KNOWLEDGE

Result = Mapping[str, Any]

# What is looked at of a result. Scores in [0, 1]; NLL in nats per token of the right answer.
QUANTITIES = {
    "knowledge": "knowledge after DA",
    "kept": "knowledge, DA − MKA",
    "knowledge_nll": "knowledge NLL, DA − MKA",
    "alignment": "alignment after DA",
    "alignment_nll": "alignment NLL after DA",
}


class Row(NamedTuple):
    """One cell of a study.

    Attributes:
      cell: Its name.
      seeds: Those that are done.
      means: Mean over seeds with its 95 % interval, by quantity.
      paired: Mean difference to the baseline over the seeds that both have, with its interval;
        empty for the baseline.
      leak: Largest over seeds, of the cell's own basis; None where there is none.
      width: Mean share of the space that the basis of the leak spans, whether or not anything keeps
        the alignment off it; None where there is no basis.
    """

    cell: str
    seeds: tuple[int, ...]
    means: Mapping[str, Estimate]
    paired: Mapping[str, Estimate]
    leak: float | None
    width: float | None


def rows(results: Sequence[Result], baseline: str) -> list[Row]:
    """One row per cell, in the order of the results."""
    names = list(dict.fromkeys(result["cell"] for result in results))
    by_cell = {
        name: {result["seed"]: result for result in results if result["cell"] == name}
        for name in names
    }
    return [_row(name, by_cell[name], by_cell.get(baseline, {}), baseline) for name in names]


def quantity(result: Result, name: str) -> float:
    """A quantity of one result.

    Examples:
      >>> task = {"kind": "knowledge-intensive", "score": 0.5, "nll": 2.0}
      >>> quantity({"after": {"t": task}, "mka": {"t": {**task, "score": 0.75}}}, "kept")
      -0.25
    """
    kind = ALIGNMENT if name.startswith("alignment") else KNOWLEDGE
    field = "nll" if name.endswith("nll") else "score"
    after = _mean(result["after"], kind, field)
    is_change = name in ("kept", "knowledge_nll")
    return after - _mean(result["mka"], kind, field) if is_change else after


def seed_interval(values: Sequence[float]) -> Estimate:
    """The mean over seeds and its 95 % interval by Student's t.

    A handful of seeds is too few to resample: the percentile bootstrap of five values covers far
    less than it says. One seed has an interval without bounds.

    Examples:
      >>> seed_interval([0.5]).low
      -inf
      >>> [round(x, 3) for x in seed_interval([1.0, 2.0, 3.0])]
      [2.0, -0.484, 4.484]
    """
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if array.size < 2:
        return Estimate(mean, -np.inf, np.inf)
    half = float(stats.t.ppf(0.975, array.size - 1) * array.std(ddof=1) / np.sqrt(array.size))
    return Estimate(mean, mean - half, mean + half)


def item_interval(result: Result, other: Result, name: str) -> Estimate:
    """The difference of two cells of one seed, with a bootstrap interval over its items.

    It says how far the test's items decide, nothing of how another seed would come out. Tasks
    weigh alike, as in `quantity`. Without bounds where a score has no outcome per item.

    Raises:
      ValueError: The quantity is a NLL, which has no outcome per item here.
    """
    if name.endswith("nll"):
        raise ValueError(f"{name} has no outcomes per item; expected a score")
    kind = ALIGNMENT if name == "alignment" else KNOWLEDGE
    tasks = [task for task, found in result["after"].items() if found["kind"] == kind]
    differences = [_outcomes(result, task, name) - _outcomes(other, task, name) for task in tasks]
    if not differences or not all(map(len, differences)):
        return seed_interval([quantity(result, name) - quantity(other, name)])
    return difference_estimate(differences)


def _row(name: str, mine: Mapping[int, Result], others: Mapping[int, Result], baseline: str) -> Row:
    """One cell beside the baseline."""
    both = [seed for seed in mine if seed in others and name != baseline]
    measured = [result for result in mine.values() if "leak" in result]
    return Row(
        cell=name,
        seeds=tuple(mine),
        means={q: seed_interval([quantity(r, q) for r in mine.values()]) for q in QUANTITIES},
        paired={q: _paired(q, [(mine[s], others[s]) for s in both]) for q in QUANTITIES}
        if both
        else {},
        leak=max((result["leak"] for result in measured), default=None),
        width=float(np.mean([r["width"] for r in measured])) if measured else None,
    )


def _paired(name: str, pairs: Sequence[tuple[Result, Result]]) -> Estimate:
    """The difference of two cells over seeds; over items where there is one seed only."""
    if len(pairs) == 1 and not name.endswith("nll"):
        return item_interval(*pairs[0], name)
    return seed_interval([quantity(a, name) - quantity(b, name) for a, b in pairs])


def _outcomes(result: Result, task: str, name: str) -> Float[np.ndarray, " n"]:
    """What a quantity is per item; what is kept is counted from the result's own MKA."""
    after = np.asarray(result["after"][task]["outcomes"], np.float64)
    if name != "kept":
        return after
    return after - np.asarray(result["mka"][task]["outcomes"], np.float64)


def _mean(tasks: Mapping[str, Any], kind: str, field: str) -> float:
    """The mean over the tasks of a kind; NaN if there is none."""
    values = [found[field] for found in tasks.values() if found["kind"] == kind]
    return float(np.mean(values)) if values else float("nan")
