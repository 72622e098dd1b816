"""Scores of answers that are in a file already, without a model.

The file is JSON Lines as the reference's generation writes it: `{"prompt", "text",
"additional_info": {gold}}` each; `output` may stand for `text`, `eval` for `additional_info`. Where
lines carry no gold, a folder of test files has it, item by item.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medcare_jax.data.records import NOT_TEXT, Record, RecordError, Turn, is_text
from medcare_jax.data.scanning import scan_json
from medcare_jax.evaluation.grading import Grade, grade
from medcare_jax.evaluation.items import LETTERS, READERS, Family, Item, read_id, read_type
from medcare_jax.evaluation.results import FORMAT, DataFile, Results, Sample
from medcare_jax.evaluation.scoring import Rules
from medcare_jax.evaluation.scoring.cblue_parse import PARSERS
from medcare_jax.evaluation.scoring.cblue_score import PredictionError, check_order
from medcare_jax.evaluation.structured import is_structure, read_structured, with_structured_gold
from medcare_jax.evaluation.summaries import Graded, summarise
from medcare_jax.evaluation.tasks import TASKS, TaskSpec, load_tasks
from medcare_jax.files import file_digest

SUPPLIED = "generate"
_INFO = "additional_info"


class Scored(NamedTuple):
    """Results and samples of a file of answers."""

    results: Results
    samples: list[Sample]


class _Line(NamedTuple):
    """One line of the file."""

    location: str
    text: str
    info: Mapping[str, Any] | None
    field: str
    prompt: str


def score_predictions(
    path: Path, task: str, rules: Rules, *, data: Path | None = None, seed: int = 0
) -> Scored:
    """Scores a file of answers to one task.

    Args:
      path: the file.
      task: a key of `TASKS`.
      rules: see the package `scoring`.
      data: a folder with the task's test file, or of CBLUE a file of structured gold; None: every
        line carries its gold.
      seed: of the bootstrap.

    Raises:
      RecordError: a line is no object with a text, lacks its gold, or has the id of another; by
        file and line.
      PredictionError: with `data`, answers of another number, or in another order.
    """
    spec = TASKS[task]
    lines = _read(path)
    items, files = _items(path, lines, task, data)
    _refuse_twins(lines)
    grades = [grade(spec, i, line.text, rules) for i, line in zip(items, lines, strict=True)]
    graded = [_graded(i, g) for i, g in zip(items, grades, strict=True)]
    results: Results = {
        "format": FORMAT,
        "status": "complete",
        "model": {
            "name": path.name,
            "kind": "predictions",
            "digest": file_digest(path),
            "tokenizer": "",
            "keep": [],
            "stage": None,
            "step": None,
        },
        "settings": {"rules": rules, "seed": seed},
        "versions": {},
        "data": {task: files},
        "tasks": {
            task: {
                "title": spec.title,
                "language": spec.language,
                "kind": spec.kind,
                "metric": spec.metric,
                "protocol": SUPPLIED,
                "items": len(items),
                "left_out": {},
                "protocols": {
                    SUPPLIED: {
                        "unreadable": sum(g.parsed is None for g in grades) / len(grades),
                        "scores": summarise(spec, graded, rules, seed=seed),
                    }
                },
            }
        },
    }
    samples = [_sample(task, *row) for row in zip(items, lines, grades, strict=True)]
    return Scored(results, samples)


def _read(path: Path) -> list[_Line]:
    """The lines of the file, each with a text."""
    lines = []
    for location, value in scan_json(path):
        if isinstance(value, RecordError):
            raise value
        if not isinstance(value, dict):
            raise RecordError(location, "", "expected an object")
        if not is_text(value):
            raise RecordError(location, "", NOT_TEXT)
        text = value.get("text", value.get("output"))
        if not isinstance(text, str):
            raise RecordError(location, "text", "expected the answer, got none")
        field = "eval" if "eval" in value and "additional_info" not in value else _INFO
        info = value.get(field)
        if info is not None and not isinstance(info, dict):
            raise RecordError(location, field, "expected an object, the gold")
        lines.append(_Line(location, text, info, field, str(value.get("prompt", ""))))
    if not lines:
        raise RecordError(f"{path}:1", "", "expected at least one answer, got none")
    return lines


def _items(
    path: Path, lines: Sequence[_Line], task: str, data: Path | None
) -> tuple[list[Item], list[DataFile]]:
    """The items answered, and the files that have their gold."""
    spec = TASKS[task]
    if data is None:
        return [_with_gold(spec, line) for line in lines], [_data_file(path)]
    if data.is_file():
        if spec.family != "cblue":
            raise ValueError(f"--data={data}: expected a folder; only CBLUE has gold in one file")
        bare = [_item(spec, line) for line in lines]
        return with_structured_gold(bare, read_structured(data), data), [_data_file(data)]
    (loaded,) = load_tasks(data, [task])
    known = [_id(line, "") for line in lines]
    items = [item.id for item in loaded.items]
    if len(known) == len(items):  # lines without an id are taken in the file's order
        known = [mine or theirs for mine, theirs in zip(known, items, strict=True)]
    check_order(task, items, known)
    return list(loaded.items), loaded.data_files()


def _data_file(path: Path) -> DataFile:
    """A file as results name it."""
    return {"file": path.name, "sha256": file_digest(path)}


def _item(spec: TaskSpec, line: _Line) -> Item:
    """The item that a line describes, without its gold."""
    info = line.info or {}
    kind = info.get("task_dataset") if spec.family == "cblue" else info.get("type")
    if spec.family == "cblue" and not (isinstance(kind, str) and kind in PARSERS):
        problem = f"expected one of {', '.join(PARSERS)}"
        raise RecordError(line.location, f"{line.field}.task_dataset", problem)
    choices = info.get("answer_choices") or []
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        problem = "expected a list of texts"
        raise RecordError(line.location, f"{line.field}.answer_choices", problem)
    return Item(
        _id(line, line.location.rpartition(":")[2]),
        read_type(kind, line.location, f"{line.field}.type"),
        (Turn("human", line.prompt),),
        gold=None,
        options=dict.fromkeys("ABCDEFGHIJ", "") if spec.family == "exam" else {},
        choices=tuple(choices),
    )


def _id(line: _Line, default: str) -> str:
    """The id of a line's item."""
    value = (line.info or {}).get("sample_id")
    return read_id(value, default, line.location, f"{line.field}.sample_id")


def _refuse_twins(lines: Sequence[_Line]) -> None:
    """An id that comes twice would count one item double."""
    seen: dict[str, str] = {}
    for line in lines:
        if not (name := _id(line, "")):
            continue
        if name in seen:
            problem = f"expected an id of its own, got the one of {seen[name]}"
            raise RecordError(line.location, f"{line.field}.sample_id", problem)
        seen[name] = line.location


def _with_gold(spec: TaskSpec, line: _Line) -> Item:
    """The item that a line describes, with the gold that it carries."""
    names = ["answer", "answer_idx"] if spec.family == "exam" else ["answer"]
    is_one_text = spec.rule.startswith("mmedbench")  # its rules look for the gold as it is
    if is_one_text:
        names.reverse()
    info = line.info or {}
    golds = [info[name] for name in names if info.get(name) is not None]
    if not golds:
        problem = "expected the gold, got none; name the folder of the test files with --data"
        raise RecordError(line.location, f"{line.field}.{names[0]}", problem)
    item = _item(spec, line)
    if spec.family in _ALONE:
        is_gold, expected = _ALONE[spec.family]
        for gold in golds:  # `answer` of an exam may be the option's text
            if is_gold(item, gold):
                return item._replace(gold="".join(gold) if is_one_text else gold)
        raise RecordError(line.location, f"{line.field}.{names[0]}", f"expected {expected}")
    record = Record(item.id, (*item.turns, Turn("gpt", "")), info, line.location)
    try:
        return READERS[spec.family](record, info, item)
    except RecordError as error:
        field = error.field.replace("eval", line.field, 1)
        raise RecordError(error.location, field, error.problem) from None


def _is_letters(item: Item, gold: Any) -> bool:
    """Letters, together or as the list that some of the reference's files have."""
    letters = gold if isinstance(gold, list) and gold else [gold]
    return all(isinstance(one, str) and LETTERS.fullmatch(one) for one in letters)


def _is_text(item: Item, gold: Any) -> bool:
    """A text that is not empty."""
    return isinstance(gold, str) and bool(gold)


_ALONE: dict[Family, tuple[Callable[[Item, Any], bool], str]] = {
    "exam": (_is_letters, "letters"),
    "options": (_is_text, "the text of the right option"),
    "cblue": (lambda item, gold: is_structure(item.type, gold), "the structure of its task"),
    "open": (_is_text, "a text"),
}
"""What gold is where the prompt, which others may have changed, is not there to check it by."""


def _graded(item: Item, found: Grade) -> Graded:
    """What a summary needs."""
    return Graded(item.id, item.type, found.scores, found.counts, found.parsed, item.gold)


def _sample(task: str, item: Item, line: _Line, found: Grade) -> Sample:
    """An answer as `samples.jsonl` has it."""
    return {
        "task": task,
        "protocol": SUPPLIED,
        "id": item.id,
        "type": item.type,
        "prompt": [{"role": "user", "content": turn.text} for turn in item.turns],
        "output": line.text,
        "parsed": found.parsed,
        "gold": item.gold,
        "scores": found.scores,
        "details": {"unreadable": found.parsed is None},
    }


__all__ = ["PredictionError", "Scored", "score_predictions"]
