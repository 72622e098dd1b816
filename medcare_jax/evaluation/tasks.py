"""The table of evaluation tasks, and their files as typed items.

A file is one of MedCareData's test files: records whose `eval` holds the gold. What an item asks
for is written in its `eval`; what a task is for stands in `TASKS`.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from absl import logging

from medcare_jax.data.records import Record, RecordError, Turn, open_records
from medcare_jax.evaluation.answers import FORMATS, Format, option_lines, parse_diagnoses

Kind = Literal["knowledge-intensive", "alignment-required"]
KNOWLEDGE: Kind = "knowledge-intensive"
ALIGNMENT: Kind = "alignment-required"


class TaskSpec(NamedTuple):
    """A row of the task table.

    Attributes:
      file: name inside the folder of test files.
      kind: whether it asks for facts or for a task's output convention.
      metric: the score of the headline; others may stand beside it.
    """

    file: str
    kind: Kind
    metric: str


TASKS: dict[str, TaskSpec] = {
    "icd10_unseen": TaskSpec("unseen.json", KNOWLEDGE, "accuracy"),
    "icd10_retained": TaskSpec("retained.json", KNOWLEDGE, "accuracy"),
    "icd10_coding": TaskSpec("coding.json", ALIGNMENT, "exact_match"),
    "medqa": TaskSpec("MedQA.json", KNOWLEDGE, "accuracy"),
    "medmcqa": TaskSpec("MedMCQA.json", KNOWLEDGE, "accuracy"),
    "mmlu_med": TaskSpec("MMLU_med.json", KNOWLEDGE, "accuracy"),
    "pubmedqa": TaskSpec("PubMedQA.json", KNOWLEDGE, "accuracy"),
    "cmexam": TaskSpec("CMExam.json", KNOWLEDGE, "accuracy"),
    "cmmlu_med": TaskSpec("CMMLU_med.json", KNOWLEDGE, "accuracy"),
}


class ChoiceItem(NamedTuple):
    """A question answered by the text of one of its options.

    Attributes:
      id: the file's `sample_id`.
      type: subject or sort of question; empty if the file gives none.
      turns: the prompt, ending with a human turn.
      options: the texts to choose from.
      gold: index of the right one.
    """

    id: str
    type: str
    turns: tuple[Turn, ...]
    options: tuple[str, ...]
    gold: int


class WritingItem(NamedTuple):
    """A request whose answer must have a strict format.

    Attributes:
      id: the file's `sample_id`.
      type: sort of request; empty if the file gives none.
      turns: the prompt, ending with a human turn.
      form: the format asked for.
      gold: the right answer as text.
    """

    id: str
    type: str
    turns: tuple[Turn, ...]
    form: Format
    gold: str


class Task(NamedTuple):
    """A named set of items of one protocol.

    Attributes:
      name: key of `TASKS`.
      spec: its row there.
      items: all `ChoiceItem` or all `WritingItem`, in the file's order.
      num_multiple: questions with several right letters, which choosing one option cannot
        answer; they are left out of the items.
    """

    name: str
    spec: TaskSpec
    items: tuple[ChoiceItem, ...] | tuple[WritingItem, ...]
    num_multiple: int


def load_tasks(folder: str | Path, names: Sequence[str] = (), *, limit: int = 0) -> list[Task]:
    """The tasks of a folder of test files.

    Args:
      folder: where the files of `TASKS` lie.
      names: keys of `TASKS`; none: every task whose file is there, and a warning that names the
        files that belong to no task.
      limit: items per task, taken evenly over the file; 0 for all.

    Returns:
      Tasks in the order of `names`, or of `TASKS`.

    Raises:
      ValueError: on an unknown name, a folder without any known file, or a task whose items are
        not of one protocol or all left out.
      FileNotFoundError: if a named task's file is missing.
      RecordError: on an item without usable gold, by file and line.
    """
    folder = Path(folder)
    for name in names:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.4) or sorted(TASKS)
            raise ValueError(f"unknown task {name!r}; the nearest are {', '.join(near)}")
    return [_load_task(folder, name, limit) for name in names or _names_found(folder)]


def _names_found(folder: Path) -> list[str]:
    """Tasks whose file the folder has; the other files are named in a warning."""
    files = {path.name for path in folder.glob("*.json*")}
    found = [name for name, spec in TASKS.items() if spec.file in files]
    if not found:
        known = ", ".join(sorted(spec.file for spec in TASKS.values()))
        raise ValueError(f"expected test files in {folder}, found none of {known}")
    if unknown := files - {TASKS[name].file for name in found}:
        logging.warning("files of no task, not scored: %s", ", ".join(sorted(unknown)))
    return found


def _load_task(folder: Path, name: str, limit: int) -> Task:
    """One task from its file."""
    spec = TASKS[name]
    if not (folder / spec.file).is_file():
        raise FileNotFoundError(f"task {name!r} needs {folder / spec.file}, which is not there")
    records = open_records(folder / spec.file)
    chosen = range(len(records))
    if 0 < limit < len(records):
        chosen = [i * len(records) // limit for i in range(limit)]  # type: ignore[assignment]
    items = [_item(records[i]) for i in chosen]
    choices = tuple(item for item in items if isinstance(item, ChoiceItem))
    writings = tuple(item for item in items if isinstance(item, WritingItem))
    if bool(choices) == bool(writings):
        raise ValueError(
            f"{folder / spec.file}: expected questions with one answer or requests in a format, "
            f"got {len(choices)} and {len(writings)} of {len(items)} items"
        )
    return Task(name, spec, choices or writings, items.count(None))


def _item(record: Record) -> ChoiceItem | WritingItem | None:
    """The item of a record; None for a question with several right letters."""
    gold = record.evaluation
    if gold is None or not isinstance(gold.get("answer"), str) or not gold["answer"]:
        raise RecordError(record.location, "eval.answer", "expected a text, the gold; got none")
    if record.turns[-1].role != "gpt" or record.turns[-2].role != "human":
        raise RecordError(record.location, "conversations", "expected a prompt, then its gold")
    head = (str(gold.get("sample_id", record.id)), str(gold.get("type", "")), record.turns[:-1])
    if "format" in gold:
        return WritingItem(*head, *_written_gold(record, gold["format"], gold["answer"]))
    if "options" in gold:
        return ChoiceItem(*head, *_option_gold(record, gold["options"], gold["answer"]))
    letters = option_lines(record.turns[-2].text)
    if not letters or not set(gold["answer"]) <= set(letters):
        problem = f"expected letters among {', '.join(letters) or 'lines A. ... of the prompt'}"
        raise RecordError(record.location, "eval.answer", problem)
    if len(gold["answer"]) > 1:
        return None
    return ChoiceItem(*head, tuple(letters.values()), list(letters).index(gold["answer"]))


def _written_gold(record: Record, form: object, answer: str) -> tuple[Format, str]:
    """The format asked for and a gold that has it."""
    for known in FORMATS:
        if form == known:
            if parse_diagnoses(answer, known) is None:
                raise RecordError(record.location, "eval.answer", f"is not in format {known}")
            return known, answer
    raise RecordError(record.location, "eval.format", f"expected one of {', '.join(FORMATS)}")


def _option_gold(record: Record, options: object, answer: str) -> tuple[tuple[str, ...], int]:
    """The options and which of them is right."""
    if (
        not isinstance(options, list)
        or not all(isinstance(option, str) and option for option in options)
        or options.count(answer) != 1
    ):
        problem = "expected texts, just one of them the answer"
        raise RecordError(record.location, "eval.options", problem)
    return tuple(options), options.index(answer)
