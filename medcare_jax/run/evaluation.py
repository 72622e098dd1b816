"""What `tools/evaluate.py` does: a model on tasks, or answers that are there already."""

import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import jax

from medcare_jax.evaluation.evaluator import Options, evaluate, num_answers, unanswered
from medcare_jax.evaluation.journal import forget_samples
from medcare_jax.evaluation.journal import write_samples as write_samples_file
from medcare_jax.evaluation.predictions import score_predictions
from medcare_jax.evaluation.report.evaluation_report import write_evaluation_report
from medcare_jax.evaluation.results import (
    PAGE_FILE,
    Results,
    read_results,
    request_of,
    write_results,
)
from medcare_jax.evaluation.scoring import Rules
from medcare_jax.evaluation.summaries import score_lines
from medcare_jax.evaluation.tasks import GENERATE, load_tasks, task_name
from medcare_jax.run.facts import versions
from medcare_jax.run.marking import Marking, check_tasks
from medcare_jax.run.progress import Display
from medcare_jax.run.prompts import Generation, answer_file
from medcare_jax.run.subjects import Asked, open_subject
from medcare_jax.run.workdir import WorkdirError, hold
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is asked for; fields as the flags of `tools/evaluate.py`.

    Attributes:
      model: Which model.
      data: Folder of test files.
      tasks: Names; `all`: every task whose file is there.
      output: Folder of the results.
      options: How to ask and score.
      write_samples: Whether prompts and answers are written.
      overwrite: Whether results of another evaluation may be replaced.
      marking: Who will mark the answers; what there is to mark is looked at first.
    """

    model: Asked
    data: pathlib.Path
    tasks: tuple[str, ...]
    output: pathlib.Path
    options: Options
    write_samples: bool = True
    overwrite: bool = False
    marking: Marking | None = None


def run_evaluation(asked: Evaluation, display: Display) -> Results:
    """Scores a model; stopped at any point, the same call goes on from there.

    Raises:
      ValueError, OSError: What was given cannot be used; the message says what to do.
    """
    names = () if asked.tasks == (ALL,) else asked.tasks
    tasks = load_tasks(asked.data, names, limit=asked.options.limit)
    if asked.marking is not None:
        check_tasks(asked.marking, [task.name for task in tasks], asked.options.protocols)
    counts = ", ".join(f"{task.name} {len(task.items)}" for task in tasks)
    display.line(f"items: {counts}")
    with hold(asked.output):
        mesh = make_mesh(MeshSettings())
        with jax.set_mesh(mesh):
            display.headline(asked.model.path)
            subject, model = open_subject(asked.model, mesh)
            if not asked.overwrite:
                mine = unanswered(model, tasks, asked.options, versions())
                _refuse_other(asked.output, mine)
            done = collections.Counter[str]()
            total = num_answers(tasks, asked.options.protocols)
            with display.bar("answers", total) as bar:

                def count(what: str, items: int) -> None:
                    done[what] += items
                    bar.update(done.total(), {})

                results = evaluate(
                    subject,
                    model,
                    tasks,
                    asked.options,
                    asked.output,
                    versions=versions(),
                    write_samples=asked.write_samples,
                    on_done=count,
                )
    if not done:
        display.line("the scores are there already")
    write_evaluation_report(asked.output)
    _tell(results, asked.output, display.line)
    return results


def run_prompts(
    model: Asked,
    source: pathlib.Path,
    target: pathlib.Path,
    generation: Generation,
    display: Display,
    *,
    overwrite: bool = False,
) -> None:
    """Answers a file of prompts, without scores; see `run/prompts.py`.

    Raises:
      WorkdirError: The target is there and may not be replaced, or can never be.
    """
    if target.is_dir():
        raise WorkdirError(f"{target} is a folder; --output of --prompts is a file, name one in it")
    if target.exists() and source.exists() and target.samefile(source):
        raise WorkdirError(f"{target} holds the prompts, which answers would replace; name another")
    if target.exists() and not overwrite:
        raise WorkdirError(f"{target} is there; name another --output, or give --overwrite")
    mesh = make_mesh(MeshSettings())
    with jax.set_mesh(mesh), contextlib.ExitStack() as shown:
        subject, facts = open_subject(model, mesh)
        open_bar = functools.cache(lambda total: shown.enter_context(display.bar("answers", total)))
        name = json.dumps([facts["digest"], facts["tokenizer"], model.dtype])
        counts = answer_file(
            source,
            target,
            subject.decoder,
            subject.params,
            subject.tokenizer,
            model=name,
            generation=generation,
            on_done=lambda done, total: open_bar(total).update(done, {}),
        )
    display.line(f"{target}: {counts.prompts} answers, {counts.skipped} skipped, {counts.cut} cut")


def run_predictions(
    path: pathlib.Path,
    task: str,
    rules: Rules,
    display: Display,
    *,
    data: pathlib.Path | None = None,
    output: pathlib.Path | None = None,
    seed: int = 0,
    write_samples: bool = True,
    overwrite: bool = False,
    marking: Marking | None = None,
) -> Results:
    """Scores answers that are in a file.

    Args:
      path: The file; see `evaluation/predictions.py`.
      task: Which task's answers they are.
      rules: `reference` or `strict`.
      display: What the person sees.
      data: Folder of test files, or CBLUE's structured gold; None: each line carries its gold.
      output: Where `results.json` and `samples.jsonl` go; None: nowhere.
      seed: Of the bootstrap.
      write_samples: Whether prompts and answers are written.
      overwrite: Whether results of another evaluation may be replaced.
      marking: Who will mark the answers; whether there is anything to mark is looked at first.
    """
    name = task_name(task)
    if marking is not None:
        check_tasks(marking, [name], (GENERATE,))
    scored = score_predictions(path, name, rules, data=data, seed=seed)
    if output is not None:
        with hold(output):
            if not overwrite:
                _refuse_other(output, scored.results)
            forget_samples(output)
            if write_samples:
                write_samples_file(output, scored.samples)
            write_results(output, scored.results)
            write_evaluation_report(output)
    _tell(scored.results, output, display.line)
    return scored.results


def _tell(results: Results, folder: pathlib.Path | None, say: Callable[[str], None]) -> None:
    """Scores, and where they lie."""
    for line in score_lines(results):
        say(line)
    if folder is not None:
        say(f"report: {folder / PAGE_FILE}")


def _refuse_other(folder: pathlib.Path, results: Results) -> None:
    """Keeps hours of work from being written over by accident."""
    known = read_results(folder)
    if known is None:
        return
    mine, theirs = request_of(results), request_of(known)
    if others := [name for name in mine if mine[name] != theirs[name]]:
        raise WorkdirError(
            f"{folder} has results of {known['model']['name']} that were asked for otherwise "
            f"(other {', '.join(others)}); name another --output, or give --overwrite"
        )
