"""Tasks to results: every item of every task, asked in every way, chunk by chunk.

A chunk is a fixed set of items that are computed together, and is done or not: whoever goes on
where another stopped meets the same chunks, so the same batches, so the same bits.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

from medcare_jax.agreement import first_says
from medcare_jax.evaluation.asking import Question, Subject, ask, messages_of, question, room
from medcare_jax.evaluation.journal import JOURNAL_FILE, Journal, forget_samples
from medcare_jax.evaluation.journal import write_samples as write_samples_file
from medcare_jax.evaluation.results import (
    FORMAT,
    SAMPLES_FILE,
    Model,
    ProtocolResult,
    Results,
    Sample,
    TaskResult,
    read_results,
    request_of,
    write_results,
)
from medcare_jax.evaluation.scoring import Rules
from medcare_jax.evaluation.summaries import Graded, summarise
from medcare_jax.evaluation.tasks import Protocol, Task, protocols_of

_BATCHES_PER_CHUNK = 4
TOO_LONG = "longer than the context"


class Options(NamedTuple):
    """Everything that scores depend on beside the model and the items.

    Attributes:
      protocols: how to ask; a task that knows none of them is asked in its first way.
      rules: see the package `scoring`.
      batch: prompts at once.
      max_new_tokens: longest written answer; 0: each task's own.
      limit: items per task that were loaded; 0: all. Only written down.
      seed: of the bootstrap.
      dtype: that the model computes in. Only written down.
    """

    protocols: tuple[Protocol, ...] = ("generate",)
    rules: Rules = "reference"
    batch: int = 16
    max_new_tokens: int = 0
    limit: int = 0
    seed: int = 0
    dtype: str = "float32"


def evaluate(
    subject: Subject,
    model: Model,
    tasks: Sequence[Task],
    options: Options,
    folder: Path,
    *,
    versions: dict[str, str],
    write_samples: bool,
    is_writer: bool = True,
    on_done: Callable[[str, int], None] = lambda what, items: None,
) -> Results:
    """Scores a model on tasks and writes `results.json`, and `samples.jsonl` if asked for.

    `results.json` is there from the start, marked partial, and grows with every task and protocol.
    With samples, an evaluation that was killed goes on where it stopped; without, no text is
    written anywhere, and it goes on with the first unfinished task and protocol.

    Args:
      subject: what is asked.
      model: what results call it.
      tasks: from `load_tasks`.
      options: how.
      folder: where the files go; what is there of another model, other items or settings is
        replaced, its samples included.
      versions: of the packages that decide the numbers.
      write_samples: whether to write prompts and answers, which may be about patients; if not,
        those of an earlier evaluation go too.
      is_writer: whether this process writes; of several that compute together one does, and all
        read what it left before.
      on_done: called with `TASK, PROTOCOL` and the number of items just done, also those that an
        earlier run had done.
    """
    results = unanswered(model, tasks, options, versions)
    known = read_results(folder)
    is_same = known is not None and _key(known) == _key(results)
    if is_writer and not (is_same and write_samples):
        forget_samples(folder)  # no report may show them beside other scores, or at all
    if known is not None and is_same:
        if _is_whole(known, tasks, options) and (
            not write_samples or (folder / SAMPLES_FILE).is_file()
        ):
            return _finished(known, folder, is_writer=is_writer)
        results["tasks"] = {} if write_samples else known["tasks"]
    write = functools.partial(write_results, folder, results) if is_writer else lambda: None
    write()
    journal = Journal(folder, _key(results), is_writer=is_writer) if write_samples else None
    first_says(True)  # all have read what was there before anyone finishes and takes it away
    work = [_Work(subject, task, options) for task in tasks]
    with contextlib.nullcontext() if journal is None else contextlib.closing(journal):
        for each in work:
            _answer(each, results, journal, write, on_done)
        results["status"] = "complete"
        if journal is not None and is_writer:
            write_samples_file(folder, _in_order(work, journal))
        write()
        if journal is not None:
            journal.discard()
    return results


def _finished(results: Results, folder: Path, *, is_writer: bool) -> Results:
    """Results that are whole, in order also where a kill came between the last files."""
    is_judged = "judge" in results["settings"]  # then it says whether all marks are there
    if results["status"] == "partial" and not is_judged:
        results["status"] = "complete"
        if is_writer:
            write_results(folder, results)
    if is_writer:
        (folder / JOURNAL_FILE).unlink(missing_ok=True)
    return results


def unanswered(
    model: Model, tasks: Sequence[Task], options: Options, versions: dict[str, str]
) -> Results:
    """The results before anything is asked; arguments as those of `evaluate`."""
    return {
        "format": FORMAT,
        "status": "partial",
        "model": model,
        "settings": {**options._asdict(), "protocols": list(options.protocols)},
        "versions": versions,
        "data": {task.name: task.data_files() for task in tasks},
        "tasks": {},
    }


def _answer(
    work: "_Work",
    results: Results,
    journal: Journal | None,
    write: Callable[[], object],
    on_done: Callable[[str, int], None],
) -> None:
    """Asks a task in every way that is not there yet, and adds it to the results."""
    entry = results["tasks"].setdefault(work.task.name, work.entry())
    for protocol in work.protocols if work.chunks else ():
        said = f"{work.task.name}, {protocol}"
        if protocol in entry["protocols"]:
            on_done(said, len(work.kept))
            continue
        graded = work.graded(protocol, journal, functools.partial(on_done, said))
        entry["protocols"][protocol] = work.summary(graded)
        write()


def num_answers(tasks: Sequence[Task], protocols: Sequence[Protocol]) -> int:
    """How many answers `evaluate` will report, if all items fit the context."""
    return sum(len(task.items) * len(protocols_of(task.spec, protocols)) for task in tasks)


def _is_whole(results: Results, tasks: Sequence[Task], options: Options) -> bool:
    """Whether every task was asked in every way; a judge's marks may be missing."""
    entries = [
        (protocols_of(task.spec, options.protocols), results["tasks"].get(task.name))
        for task in tasks
    ]
    return all(
        entry is not None and (not entry["items"] or {*asked} <= {*entry["protocols"]})
        for asked, entry in entries
    )


class _Entry(NamedTuple):
    """A graded item and whether it was unreadable."""

    graded: Graded
    is_unreadable: bool


class _Work:
    """One task on its way."""

    def __init__(self, subject: Subject, task: Task, options: Options) -> None:
        """Encodes the prompts and decides which fit; the longest go first."""
        self.subject, self.task, self.options = subject, task, options
        spec = task.spec
        self.protocols = protocols_of(task.spec, options.protocols)
        self.max_new_tokens = options.max_new_tokens or spec.max_new_tokens
        context = subject.decoder.settings.max_position_embeddings
        self.questions = {i: question(subject, spec, item) for i, item in enumerate(task.items)}
        self.kept = [i for i in self.questions if self._length(i) <= context]
        by_length = sorted(self.kept, key=lambda i: -len(self.questions[i].tokens))
        size = _BATCHES_PER_CHUNK * options.batch
        self.chunks = [by_length[k : k + size] for k in range(0, len(by_length), size)]
        if too_long := len(task.items) - len(self.kept):
            logging.warning(
                "%s: %d of %d items are left out: with room for the answer they are longer than "
                "the model's context of %d tokens",
                *(task.name, too_long, len(task.items), context),
            )

    def entry(self) -> TaskResult:
        """The task's result before anything is known."""
        spec = self.task.spec
        return {
            "title": spec.title,
            "language": spec.language,
            "kind": spec.kind,
            "metric": spec.metric,
            "protocol": next(p for p in spec.protocols if p in self.protocols),
            "items": len(self.kept),
            "left_out": {TOO_LONG: len(self.task.items) - len(self.kept)},
            "protocols": {},
        }

    def graded(
        self, protocol: Protocol, journal: Journal | None, on_done: Callable[[int], None]
    ) -> list[_Entry]:
        """All items by one protocol, in the task's order; new chunks go into the journal."""
        found: dict[int, _Entry] = {}
        for number, chunk in enumerate(self.chunks):
            name = (self.task.name, protocol, number)
            if journal is not None and name in journal:
                samples = journal.samples(name)
                on_done(len(samples))
            else:
                samples = self._ask(protocol, chunk, on_done)
                if journal is not None:
                    journal.append(name, samples)
            found |= zip(chunk, map(_entry, samples), strict=True)
        return [found[i] for i in self.kept]

    def summary(self, entries: Sequence[_Entry]) -> ProtocolResult:
        """What a protocol came to."""
        spec, options = self.task.spec, self.options
        graded = [each.graded for each in entries]
        scores = summarise(spec, graded, options.rules, seed=options.seed)
        return {
            "unreadable": sum(each.is_unreadable for each in entries) / len(entries),
            "scores": scores if spec.family != "open" else {},
        }

    def _ask(
        self, protocol: Protocol, chunk: Sequence[int], on_done: Callable[[int], None]
    ) -> list[Sample]:
        """The samples of one chunk."""
        spec = self.task.spec
        questions = [self.questions[i] for i in chunk]
        answers = ask(
            self.subject,
            spec,
            questions,
            protocol,
            rules=self.options.rules,
            batch=self.options.batch,
            max_new_tokens=self.max_new_tokens,
            on_done=on_done,
        )
        return [
            {
                "task": self.task.name,
                "protocol": protocol,
                "id": each.item.id,
                "type": each.item.type,
                "prompt": messages_of(spec, each.item),
                "output": answer.output,
                "parsed": answer.grade.parsed,
                "gold": each.item.letters if spec.family == "exam" else each.item.gold,
                "scores": answer.grade.scores,
                "details": answer.details
                | dict(each.item.facts)
                | {"counts": list(answer.grade.counts), "unreadable": answer.is_unreadable},
            }
            for each, answer in zip(questions, answers, strict=True)
        ]

    def _length(self, i: int) -> int:
        """Tokens of a prompt and of the most that any protocol puts behind it."""
        mine: Question = self.questions[i]
        more = (
            room(self.subject, self.task.spec, mine.item, protocol, self.max_new_tokens)
            for protocol in self.protocols
        )
        return len(mine.tokens) + max(more)


def _entry(sample: Sample) -> _Entry:
    """What a summary needs of a sample."""
    details = sample["details"]
    is_label = isinstance(sample["gold"], str)
    graded = Graded(
        sample["id"],
        sample["type"],
        sample["scores"],
        tuple(details["counts"]),
        sample["parsed"] if is_label else None,
        sample["gold"] if is_label else None,
    )
    return _Entry(graded, details["unreadable"])


def _in_order(work: Sequence[_Work], journal: Journal) -> Iterator[Sample]:
    """All samples by task, item and protocol, a task's at a time."""
    for each in work:
        for protocol in each.protocols:
            found: dict[int, tuple[int, int]] = {
                i: (number, place)
                for number, chunk in enumerate(each.chunks)
                for place, i in enumerate(chunk)
            }
            cache: dict[int, list[Sample]] = {}
            for i in each.kept:
                number, place = found[i]
                if number not in cache:
                    cache[number] = journal.samples((each.task.name, protocol, number))
                yield cache[number][place]


def _key(results: Results) -> str:
    """What stands for model, items and settings."""
    same = [*request_of(results).values()]
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
