"""The two files that an evaluation leaves, typed: `results.json` and `samples.jsonl`.

What stands in a file is what code holds: plain dictionaries of these shapes, read and written
whole. Nothing in them depends on the clock or on how often the evaluation was stopped, so the
same model, items and settings give the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from medcare_jax.files import read_json, write_json

FORMAT = 1
RESULTS_FILE = "results.json"
SAMPLES_FILE = "samples.jsonl"
PAGE_FILE = "report.html"

Status = Literal["complete", "partial"]


class TypeScore(TypedDict):
    """The score over the items of one type, and how many they are."""

    score: float
    items: int


class MetricScore(TypedDict):
    """One metric over a task.

    Attributes:
      score: in [0, 1]; a judge's marks in [1, 5].
      low, high: its 95 % interval.
      types: per type of item; of CBLUE, per task of it.
      outcomes: one number per item that has the metric, in the order of the task's items; `score`
        is their mean. Empty if the score is of all items together and no mean (micro-F1,
        macro-F1).
      items: `items_digest` of the items that have it; results of earlier builds have none.
    """

    score: float
    low: float
    high: float
    types: dict[str, TypeScore]
    outcomes: list[float]
    items: str


class ProtocolResult(TypedDict):
    """What came of asking a task's items in one way.

    Attributes:
      unreadable: share of the answers that no rule could read; None where nothing is to be read.
      scores: by metric. Empty while a judge has yet to mark the answers.
    """

    unreadable: float | None
    scores: dict[str, MetricScore]


class TaskResult(TypedDict):
    """One task.

    Attributes:
      title: the task as a reader knows it.
      language: `en` or `zh`.
      kind: `knowledge-intensive` or `alignment-required`.
      metric, protocol: of the headline; the protocol is one of `protocols`.
      items: how many were scored, the same ones by every protocol.
      left_out: how many were not, by reason; every reason that a task can have is there.
      protocols: by name, `generate`, `likelihood`.
    """

    title: str
    language: str
    kind: str
    metric: str
    protocol: str
    items: int
    left_out: dict[str, int]
    protocols: dict[str, ProtocolResult]


class Model(TypedDict):
    """What was scored.

    Attributes:
      name: as it was asked for.
      kind: `huggingface`, `gguf`, `embedded`, `run`, or `predictions` (answers of others).
      digest: sha256 of its weights, or of the file of answers.
      tokenizer: sha256 of its tokenizer and chat template; empty for answers of others.
      keep: the adapters that were kept, in the order of the decoder; empty without adapters.
      stage, step: of a run; else None.
    """

    name: str
    kind: str
    digest: str
    tokenizer: str
    keep: list[str]
    stage: str | None
    step: int | None


class DataFile(TypedDict):
    """A file of items: its name without its folder, and its digest."""

    file: str
    sha256: str


class Results(TypedDict):
    """`results.json`.

    Attributes:
      format: `FORMAT`.
      status: `partial` if something was asked for and is not there yet.
      settings: everything that a score depends on beside the model and the items.
      versions: package to version.
      data: the files, by task.
      tasks: by name; `tasks.TASKS` has their order.
    """

    format: int
    status: Status
    model: Model
    settings: dict[str, Any]
    versions: dict[str, str]
    data: dict[str, list[DataFile]]
    tasks: dict[str, TaskResult]


class Sample(TypedDict):
    """A line of `samples.jsonl`: one item asked in one way.

    Attributes:
      prompt: the messages, each `{"role", "content"}`, as they go into the chat template.
      output: what the model wrote; by likelihood, the text of the option chosen.
      parsed: what the rules read in it, None if nothing: letters of an exam (`"AC"`), the structure
        of an extraction, a label.
      gold: the same of the right answer.
      scores: by metric; where a metric has no score of one item, it is absent.
      details: by-products, such as `log_probs` of the options.
    """

    task: str
    protocol: str
    id: str
    type: str
    prompt: list[dict[str, str]]
    output: str
    parsed: Any
    gold: Any
    scores: dict[str, float]
    details: dict[str, Any]


class ResultsError(ValueError):
    """A file that is no `results.json` of this version."""


def write_results(folder: Path, results: Results) -> Path:
    """Writes `results.json` into a folder, whole or not at all; returns its path."""
    write_json(folder / RESULTS_FILE, cast(Mapping[str, Any], results))
    return folder / RESULTS_FILE


def read_results(folder: Path) -> Results | None:
    """The `results.json` of a folder, or None if it has none.

    Raises:
      ResultsError: it is not JSON, lacks a key, or is of another format.
    """
    path = folder / RESULTS_FILE
    try:
        content = read_json(path)
    except ValueError as error:
        raise ResultsError(f"{path}: expected JSON, got something else: {error}") from None
    if content is None:
        return None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ResultsError(f"{path}: expected results of format {FORMAT}, got {found}; score anew")
    if missing := Results.__required_keys__ - content.keys():
        raise ResultsError(f"{path}: expected the keys {', '.join(sorted(missing))}, got none")
    return cast(Results, content)


def request_of(results: Results) -> dict[str, Any]:
    """What was asked for: model, settings, versions and items, and nothing of what came of them."""
    # A judge is named afterwards, when marks are added; what was answered stays the same.
    settings = {name: value for name, value in results["settings"].items() if name != "judge"}
    return {
        "model": results["model"],
        "settings": settings,
        "versions": results["versions"],
        "data": results["data"],
    }


def items_digest(items: Iterable[tuple[str, str]]) -> str:
    """What stands for items in their order, given as type and id: outcomes of equal ones pair up.

    Examples:
      >>> items_digest([("", "a"), ("", "b")]) == items_digest([("", "b"), ("", "a")])
      False
    """
    return hashlib.sha256(json.dumps([*items]).encode()).hexdigest()


def scored_items(score: MetricScore) -> tuple[str, int]:
    """What tells whether scores are of the same items: a judge may have left some unmarked."""
    return score.get("items", ""), len(score["outcomes"])


def headline(result: TaskResult) -> MetricScore | None:
    """A task's main score; None while its protocol or a judge has yet to give it."""
    protocol = result["protocols"].get(result["protocol"])
    return protocol["scores"].get(result["metric"]) if protocol else None


def read_samples(path: Path) -> Iterator[Sample]:
    """The lines of `samples.jsonl` one by one, so that a file of any size can be read.

    Raises:
      ResultsError: a line is not JSON or lacks a key; names file and line.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                sample = json.loads(line)
            except ValueError:
                raise ResultsError(f"{path}:{number}: expected a JSON object") from None
            if missing := Sample.__required_keys__ - sample.keys():
                problem = f"expected the keys {', '.join(sorted(missing))}, got none"
                raise ResultsError(f"{path}:{number}: {problem}")
            yield cast(Sample, sample)
