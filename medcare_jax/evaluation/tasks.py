"""The table of evaluation tasks, and their files as items.

A file is one of MedCareData's test files, found by its name in a folder; capitals do not matter.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from absl import logging

from medcare_jax.data.records import RecordError, open_records
from medcare_jax.evaluation.items import Family, Item, read_item
from medcare_jax.evaluation.judging.rubric import JUDGE_METRIC
from medcare_jax.evaluation.results import DataFile
from medcare_jax.evaluation.structured import (
    STRUCTURED_FILE,
    read_structured,
    with_structured_gold,
)
from medcare_jax.files import file_digest

Kind = Literal["knowledge-intensive", "alignment-required"]
KNOWLEDGE: Kind = "knowledge-intensive"
ALIGNMENT: Kind = "alignment-required"

Protocol = Literal["generate", "likelihood"]
GENERATE: Protocol = "generate"
LIKELIHOOD: Protocol = "likelihood"
PROTOCOLS: tuple[Protocol, ...] = (GENERATE, LIKELIHOOD)

_ZH, _EN = "multiplechoice_acc", "multiplechoice_en_acc"


class TaskSpec(NamedTuple):
    """A row of the task table.

    Attributes:
      title: as a reader knows the task.
      files: its possible file names without ending; the first that is there counts.
      language: `en` or `zh`.
      kind: whether it asks for facts or for a task's output convention.
      family: what its items are.
      metric: the score of the headline; others may stand beside it.
      protocols: how its items can be asked, the reference's first.
      max_new_tokens: longest answer.
      rule: of exams, the reference's scoring function, a key of `choice.REFERENCE`.
    """

    title: str
    files: tuple[str, ...]
    language: str
    kind: Kind
    family: Family
    metric: str
    protocols: tuple[Protocol, ...]
    max_new_tokens: int
    rule: str = ""


def _exam(title: str, files: tuple[str, ...], language: str, rule: str = "") -> TaskSpec:
    """An exam; the rule is its language's unless the reference has another for it."""
    rule = rule or (_ZH if language == "zh" else _EN)
    return TaskSpec(title, files, language, KNOWLEDGE, "exam", "accuracy", PROTOCOLS, 1024, rule)


def _written(
    title: str, file: str, language: str, family: Family, metric: str, max_new_tokens: int
) -> TaskSpec:
    """A task whose answers are written."""
    return TaskSpec(
        title, (file,), language, ALIGNMENT, family, metric, (GENERATE,), max_new_tokens
    )


def _icd10(title: str, file: str) -> TaskSpec:
    """Facts of the demo; options without letters can only be weighed."""
    return TaskSpec(title, (file,), "en", KNOWLEDGE, "options", "accuracy", (LIKELIHOOD,), 1)


TASKS: dict[str, TaskSpec] = {
    "medqa_mainland": _exam("MedQA (mainland)", ("medqa_mainland",), "zh"),
    "mmedbench_zh": _exam("MMedBench (zh)", ("mmedbench_zh",), "zh"),
    "cmb": _exam("CMB", ("CMB",), "zh"),
    "cmexam": _exam("CMExam", ("CMExam",), "zh"),
    "cmmlu_med": _exam("CMMLU (medical)", ("CMMLU_med", "cmmlu"), "zh"),
    "ceval_med": _exam("C-Eval (medical)", ("CEval_med", "ceval"), "zh"),
    "ple_pharmacy": _exam("PLE Pharmacy", ("PLE_Pharmacy",), "zh"),
    "ple_tcm": _exam("PLE TCM", ("PLE_TCM",), "zh"),
    "medqa": _exam("MedQA (US)", ("MedQA",), "en"),
    "medmcqa": _exam("MedMCQA", ("MedMCQA",), "en"),
    "mmlu_med": _exam("MMLU (medical)", ("MMLU_med", "mmlu"), "en"),
    "mmedbench_en": _exam("MMedBench (en)", ("mmedbench_en",), "en", "mmedbench_en_cot_acc"),
    "pubmedqa": _exam("PubMedQA", ("PubMedQA",), "en"),
    "icd10_unseen": _icd10("ICD-10-CM, facts never taught", "unseen"),
    "icd10_retained": _icd10("ICD-10-CM, facts taught", "retained"),
    "cblue": _written("CBLUE", "CBLUE", "zh", "cblue", "score", 512),
    "ccte": _written("CCTE", "CCTE", "zh", "open", JUDGE_METRIC, 1024),
    "ner": _written("NER (en)", "NER", "en", "findings", "f1", 128),
    "ner_zh": _written("NER (zh)", "NER_zh", "zh", "findings", "f1", 256),
    "mts_dialog": _written("MTS-Dialog", "MTS-Dialog", "en", "section", "rouge_l", 256),
    "meqsum": _written("MeQSum", "MeQSum", "en", "summary", "rouge_l", 64),
    "medabs": _written("Medical abstracts", "MedAbstractsTC", "en", "label", "accuracy", 32),
    "exact": _written("Exact answers", "exact", "en", "text", "exact_match", 256),
    "icd10_coding": _written("ICD-10-CM coding", "coding", "en", "diagnoses", "exact_match", 128),
}

SUFFIXES = {
    "en": "\n\nPlease format the final answer at the end of the response as: "
    "The answer is {answer}.",
    "zh": "\n\n请在回答的最后用以下格式回答：答案为{answer}。",
}
"""What the reference appends to an exam's question, by language."""


def protocols_of(spec: TaskSpec, asked: Sequence[Protocol]) -> tuple[Protocol, ...]:
    """The ways in which a task is asked; one that knows none of them, in its first way."""
    return tuple(protocol for protocol in asked if protocol in spec.protocols) or spec.protocols[:1]


class Task(NamedTuple):
    """A named set of items.

    Attributes:
      name: key of `TASKS`.
      spec: its row there.
      path: the file that it was read from.
      items: in the file's order.
    """

    name: str
    spec: TaskSpec
    path: Path
    items: tuple[Item, ...]

    def data_files(self) -> list[DataFile]:
        """The files that its items come from, as results name them."""
        paths = [self.path, self.path.parent / STRUCTURED_FILE]
        used = paths if self.spec.family == "cblue" and paths[1].is_file() else paths[:1]
        return [{"file": path.name, "sha256": file_digest(path)} for path in used]


def load_tasks(folder: str | Path, names: Sequence[str] = (), *, limit: int = 0) -> list[Task]:
    """The tasks of a folder of test files.

    Args:
      folder: where the files lie.
      names: keys of `TASKS` or names of their files; none: every task whose file is there, and a
        warning that names the files that belong to no task.
      limit: items per task, and per task of CBLUE, taken evenly over the file; 0 for all.

    Returns:
      Tasks in the order of `TASKS`.

    Raises:
      ValueError: on an unknown name, a folder without any known file, or with two of one task.
      FileNotFoundError: if a named task's file is missing.
      RecordError: on an item without usable gold, by file and line.
    """
    folder = Path(folder)
    known = {task_name(name) for name in names}
    chosen = [name for name in TASKS if name in known] or _names_found(folder)
    return [_load_task(folder, name, limit) for name in chosen]


def task_name(name: str) -> str:
    """The key of `TASKS` that a name means.

    Raises:
      ValueError: none; says which are near.

    Examples:
      >>> task_name("MTS-Dialog"), task_name("cmmlu"), task_name("CMB")
      ('mts_dialog', 'cmmlu_med', 'cmb')
    """
    meant = {file.lower(): key for key, spec in TASKS.items() for file in spec.files}
    meant |= {key: key for key in TASKS}
    if name.lower() in meant:
        return meant[name.lower()]
    near = difflib.get_close_matches(name.lower(), TASKS, n=3, cutoff=0.4) or sorted(TASKS)
    raise ValueError(f"unknown task {name!r}; the nearest are {', '.join(near)}")


def find_file(folder: Path, name: str) -> Path | None:
    """The file of a task in a folder, or None.

    Raises:
      ValueError: Two files have the same of its names, and either could be meant.
    """
    there: dict[str, list[Path]] = {}
    for path in _json_files(folder):
        there.setdefault(path.stem.lower(), []).append(path)
    found = next((there[f.lower()] for f in TASKS[name].files if f.lower() in there), [])
    if len(found) > 1:
        listed = " and ".join(path.name for path in found)
        raise ValueError(f"expected one file of task {name!r} in {folder}, found {listed}")
    return found[0] if found else None


def _json_files(folder: Path) -> list[Path]:
    """The files of a folder that may hold a task; an editor's `MedQA.json~` is none."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in (".json", ".jsonl"))


def _names_found(folder: Path) -> list[str]:
    """Tasks whose file the folder has; the other files are named in a warning."""
    found = {name: path for name in TASKS if (path := find_file(folder, name))}
    if not found:
        known = ", ".join(sorted(spec.files[0] for spec in TASKS.values()))
        raise ValueError(f"expected .json or .jsonl files in {folder}, found none of {known}")
    unknown = {path.name for path in _json_files(folder)} - {p.name for p in found.values()}
    if unknown := unknown - {STRUCTURED_FILE}:
        logging.warning("files of no task, not scored: %s", ", ".join(sorted(unknown)))
    return list(found)


def _load_task(folder: Path, name: str, limit: int) -> Task:
    """One task from its file."""
    spec = TASKS[name]
    path = find_file(folder, name)
    if path is None:
        wanted = " or ".join(f"{file}.json" for file in spec.files)
        raise FileNotFoundError(f"task {name!r} needs {folder / wanted}, which is not there")
    items = [read_item(record, spec.family) for record in open_records(path)]
    structured = path.parent / STRUCTURED_FILE
    if spec.family == "cblue" and structured.is_file():
        items = with_structured_gold(items, read_structured(structured), structured)
    seen: dict[str, Item] = {}
    for number, item in enumerate(items, 1):
        if seen.setdefault(item.id, item) is not item:
            problem = "expected an id of its own, got that of another item"
            raise RecordError(f"{path}: item {number}", "eval.sample_id", problem)
    return Task(name, spec, path, tuple(_evenly(items, limit, by_type=spec.family == "cblue")))


def _evenly(items: list[Item], limit: int, *, by_type: bool) -> list[Item]:
    """At most `limit` items, or so many of each type, spread over the file."""
    groups: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item.type if by_type else "", []).append(i)
    chosen: list[int] = []
    for mine in groups.values():
        count = min(limit or len(mine), len(mine))
        chosen += [mine[k * len(mine) // count] for k in range(count)]
    return [items[i] for i in sorted(chosen)]
