"""Marks added to an evaluation that is on disk: `results.json` and `samples.jsonl` of a folder."""

import json
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from medcare_jax.evaluation.judging.endpoint import Endpoint
from medcare_jax.evaluation.judging.judge import (
    Answer,
    Budget,
    Judged,
    as_record,
    describe_cost,
    judge,
)
from medcare_jax.evaluation.judging.rubric import (
    CRITERIA,
    HIGHEST,
    JUDGE_METRIC,
    LOWEST,
    RUBRIC_DIGEST,
)
from medcare_jax.evaluation.metrics import estimate
from medcare_jax.evaluation.results import (
    RESULTS_FILE,
    SAMPLES_FILE,
    MetricScore,
    Results,
    Sample,
    headline,
    items_digest,
    read_results,
    read_samples,
    write_results,
)
from medcare_jax.files import PRIVATE, drafted, write_json

CACHE_FOLDER = "judge_cache"
RECORD_FILE = "judge.json"
LEFT_OUT = "not marked by the judge"


def judge_folder(
    folder: Path,
    endpoint: Endpoint,
    *,
    tasks: Sequence[str] = (),
    budget: Budget | None = None,
    workers: int = 4,
    say: Callable[[str], None] = lambda line: None,
    on_done: Callable[[int], None] = lambda answers: None,
) -> Results:
    """Marks the answers of a folder, and writes its two files anew with what there is of marks.

    Answers without marks are counted in `left_out` of their task and make the results `partial`;
    called again, only those are asked for. What was asked, failed and spent goes to `judge.json`.
    Nobody else may write to the folder meanwhile.

    Args:
      folder: What an evaluation left, samples included.
      endpoint: Who marks.
      tasks: Names; none: every task whose headline is the judge's.
      budget: Prices and limits.
      workers: Requests at once.
      say: Told of cost and failures, line by line.
      on_done: Called with 1 after each answer.

    Raises:
      FileNotFoundError: No results or samples in the folder.
      ValueError: A task that is not there, or none to be judged.
    """
    results = read_results(folder)
    if results is None or not (folder / SAMPLES_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} has no {RESULTS_FILE} with {SAMPLES_FILE}; a judge marks the answers that "
            "stand there, so evaluate with samples first"
        )
    names = tasks_to_judge(results, tasks)
    places, answers = _answers(folder / SAMPLES_FILE, names)
    budget = budget or Budget()
    done = judge(
        answers,
        endpoint,
        cache=folder / CACHE_FOLDER,
        budget=budget,
        workers=workers,
        on_done=on_done,
    )
    marks = dict(zip(places, done.marks, strict=True))
    _rewrite_samples(folder / SAMPLES_FILE, marks)
    _enter(results, _by_task(folder / SAMPLES_FILE, names, marks))
    _name_judge(results, names, endpoint)
    results["status"] = "complete" if _is_whole(results) else "partial"
    write_results(folder, results)
    write_json(folder / RECORD_FILE, as_record(done))
    for line in _told(done, budget):
        say(line)
    return results


def tasks_to_judge(results: Results, tasks: Sequence[str]) -> list[str]:
    """Which tasks of these results are judged, as `chosen_tasks`."""
    metrics = {name: task["metric"] for name, task in results["tasks"].items()}
    written = [name for name, task in results["tasks"].items() if "generate" in task["protocols"]]
    return chosen_tasks(metrics, written, tasks)


def chosen_tasks(
    known: Mapping[str, str], written: Collection[str], tasks: Sequence[str]
) -> list[str]:
    """Which tasks are judged: those named, or all that only a judge can score.

    Args:
      known: Headline metric by task.
      written: Of these, the tasks whose answers are written.
      tasks: Names; none: all that only a judge can score.

    Raises:
      ValueError: A task that is not known or not written, or none to be judged.
    """
    if absent := [name for name in tasks if name not in known]:
        raise ValueError(
            f"no task {', '.join(absent)} in the results; there are {', '.join(known)}"
        )
    if unwritten := [name for name in tasks if name not in written]:
        raise ValueError(
            f"no written answers to {', '.join(unwritten)} in the results, and a judge marks "
            "nothing else; evaluate with the protocol generate first"
        )
    chosen = list(tasks) or [name for name in written if known[name] == JUDGE_METRIC]
    if not chosen:
        raise ValueError(
            f"no task is scored by a judge; name some of {', '.join(known)} to have them marked"
        )
    return chosen


def _answers(path: Path, names: Sequence[str]) -> tuple[list[int], list[Answer]]:
    """Line numbers, from 0, and answers of the tasks; options chosen by likelihood are none."""
    found = [
        (place, Answer(sample["prompt"], sample["output"], _reference(sample)))
        for place, sample in enumerate(read_samples(path))
        if sample["task"] in names and sample["protocol"] == "generate"
    ]
    return [place for place, _ in found], [answer for _, answer in found]


def _reference(sample: Sample) -> str:
    """The gold as text."""
    gold = sample["gold"]
    return gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False) if gold else ""


def _marked(sample: Sample, marks: dict[str, int] | None) -> Sample:
    """A sample with these marks, or without any."""
    scores = {n: v for n, v in sample["scores"].items() if n not in (*CRITERIA, JUDGE_METRIC)}
    if marks is not None:
        scores |= {JUDGE_METRIC: statistics.fmean(marks.values()), **marks}
    return cast(Sample, {**sample, "scores": scores})


def _rewrite_samples(path: Path, marks: dict[int, dict[str, int] | None]) -> None:
    """The samples with marks in place of older ones, whole or not at all."""
    with drafted(path, mode=PRIVATE) as file:
        for place, sample in enumerate(read_samples(path)):
            line: Any = _marked(sample, marks[place]) if place in marks else sample
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _by_task(
    path: Path, names: Sequence[str], marks: dict[int, dict[str, int] | None]
) -> dict[str, list[Sample]]:
    """The judged samples of each task, in order."""
    judged: dict[str, list[Sample]] = {name: [] for name in names}
    for place, sample in enumerate(read_samples(path)):
        if place in marks:
            judged[sample["task"]].append(sample)
    return judged


def _name_judge(results: Results, names: Sequence[str], endpoint: Endpoint) -> None:
    """Writes down who marked which task: each may have had a judge of its own."""
    known = results["settings"].get("judge", {})
    judges = {task: judge for task, judge in known.items() if task in results["tasks"]}
    mine = {"url": endpoint.url, "model": endpoint.model, "rubric": RUBRIC_DIGEST}
    results["settings"]["judge"] = judges | dict.fromkeys(names, mine)


def _is_whole(results: Results) -> bool:
    """Whether nothing that was asked for is missing."""
    return all(
        headline(task) is not None and not task["left_out"].get(LEFT_OUT)
        for task in results["tasks"].values()
        if task["items"]  # no item that fits the context: there is nothing to wait for
    )


def _enter(results: Results, judged: dict[str, list[Sample]]) -> None:
    """Puts the means of the marks into the results, drawn again with the evaluation's seed."""
    seed = results["settings"].get("seed", 0)
    for name, samples in judged.items():
        task = results["tasks"][name]
        marked = [sample for sample in samples if JUDGE_METRIC in sample["scores"]]
        task["left_out"][LEFT_OUT] = len(samples) - len(marked)
        scores = task["protocols"]["generate"]["scores"]
        for metric in (JUDGE_METRIC, *CRITERIA):
            scores.pop(metric, None)
            if marked:
                scores[metric] = _metric(marked, metric, seed)


def _metric(samples: Sequence[Sample], metric: str, seed: int) -> MetricScore:
    """One mark over the samples that have it."""
    by_type: dict[str, list[float]] = {}
    for sample in samples:
        by_type.setdefault(sample["type"], []).append(sample["scores"][metric])
    values = [sample["scores"][metric] for sample in samples]
    # As shares of the scale: a mark of 1 is its bottom, and `estimate` would take it for a hit.
    width = HIGHEST - LOWEST
    share = estimate([(value - LOWEST) / width for value in values], seed=seed)
    return {
        "score": statistics.fmean(values),
        "low": LOWEST + width * share.low,
        "high": LOWEST + width * share.high,
        "types": {
            name: {"score": statistics.fmean(mine), "items": len(mine)}
            for name, mine in sorted(by_type.items())
        },
        "outcomes": values,
        "items": items_digest((sample["type"], sample["id"]) for sample in samples),
    }


def _told(done: Judged, budget: Budget) -> list[str]:
    """What a person is told at the end."""
    lines = [f"judge: {describe_cost(done, budget)}"]
    if done.failures:
        counts = "; ".join(f"{count:,} {reason}" for reason, count in done.failures.most_common())
        lines.append(
            f"judge: {sum(done.failures.values()):,} of {len(done.marks):,} answers have no marks "
            f"({counts}); the results are partial, the same command asks for these again"
        )
    return lines
