"""Answers of an evaluation marked by a judge that the user names, for `tools/evaluate.py`."""

import dataclasses
import pathlib
from collections.abc import Sequence

from medcare_jax.evaluation.judging.endpoint import Endpoint
from medcare_jax.evaluation.judging.folder import chosen_tasks, judge_folder, tasks_to_judge
from medcare_jax.evaluation.judging.judge import Budget
from medcare_jax.evaluation.report.evaluation_report import write_evaluation_report
from medcare_jax.evaluation.results import Results, read_results
from medcare_jax.evaluation.tasks import GENERATE, TASKS, Protocol, protocols_of
from medcare_jax.run.progress import Display
from medcare_jax.run.workdir import hold


@dataclasses.dataclass(frozen=True)
class Marking:
    """Who marks, what, and for how much; fields as the flags `--judge_*` of `tools/evaluate.py`.

    Attributes:
      endpoint: Where the answers go.
      tasks: Keys of `TASKS`; none: every task that only a judge can score.
      budget: Prices and limits.
      workers: Requests at once.
    """

    endpoint: Endpoint
    tasks: tuple[str, ...] = ()
    budget: Budget = Budget()
    workers: int = 4


def check_tasks(asked: Marking, tasks: Sequence[str], protocols: Sequence[Protocol]) -> None:
    """Refuses a judge, before hours of work, who would find nothing to mark in these tasks.

    Raises:
      ValueError: A task that is not among them or not written, or none to be judged.
    """
    written = [name for name in tasks if GENERATE in protocols_of(TASKS[name], protocols)]
    chosen_tasks({name: TASKS[name].metric for name in tasks}, written, asked.tasks)


def mark_answers(folder: pathlib.Path, asked: Marking, display: Display) -> Results:
    """Marks the answers of a folder and writes its report anew.

    Raises:
      FileNotFoundError: No results or samples in the folder.
      ValueError: A task that is not there, or none to be judged; a folder that is in use.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there; evaluate a model into it first")
    with hold(folder):
        results = _marked(folder, asked, display)
        display.line(f"report: {write_evaluation_report(folder)[1]}")
    return results


def _marked(folder: pathlib.Path, asked: Marking, display: Display) -> Results:
    """The results with marks, while a bar shows how far it is."""
    known = read_results(folder)
    total = 0
    if known is not None:
        names = tasks_to_judge(known, asked.tasks)
        total = sum(known["tasks"][name]["items"] for name in names)
    done = 0
    with display.bar("marks", total) as bar:

        def count(answers: int) -> None:
            nonlocal done
            done += answers
            bar.update(done, {})

        return judge_folder(
            folder,
            asked.endpoint,
            tasks=asked.tasks,
            budget=asked.budget,
            workers=asked.workers,
            say=display.line,
            on_done=count,
        )
