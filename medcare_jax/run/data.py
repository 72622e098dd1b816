"""The data of a whole run: batches of both stages, evaluation tasks, and the check between them."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from medcare_jax import distributed
from medcare_jax.agreement import check_same, together
from medcare_jax.data.icd10 import write_icd10_tasks
from medcare_jax.data.overlap import find_overlap
from medcare_jax.data.pipeline import TrainingBatches, make_batches
from medcare_jax.data.records import open_records
from medcare_jax.evaluation.tasks import Task, load_tasks
from medcare_jax.settings import Settings, SettingsError, StageSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class OverlapError(ValueError):
    """An evaluation question is in the training data."""


@dataclasses.dataclass(frozen=True)
class RunData:
    """Everything that a run reads.

    Attributes:
      mka: Batches of the first stage.
      da: Batches of the second stage.
      tasks: What is scored before, between and after; empty if no evaluation is asked for.
      report: JSON-able: counts, digests and the finding of the overlap check.
    """

    mka: TrainingBatches
    da: TrainingBatches
    tasks: list[Task]
    report: dict[str, Any]


def open_data(
    settings: Settings,
    tokenizer: "PreTrainedTokenizerFast",
    workdir: pathlib.Path,
    *,
    show_progress: bool = False,
) -> RunData:
    """Reads, checks, tokenises and plans all data of a run.

    Args:
      settings: Of the run.
      tokenizer: The base's.
      workdir: Where the demo's data goes, if it is asked for.
      show_progress: Whether to draw a bar while a file is tokenised.

    Raises:
      RecordError: A record that cannot be used; names file and line.
      OverlapError: An evaluation question is in the training data, and the check is on.
      PeerError: Another process found one of these, or read other data.
    """
    if settings.icd10.make:
        settings = _with_demo_tasks(settings, workdir)
    with together():
        data = _read(settings, tokenizer, show_progress=show_progress)
    check_same("the training data", f"{data.mka.fingerprint} {data.da.fingerprint}")
    return data


def _read(
    settings: Settings, tokenizer: "PreTrainedTokenizerFast", *, show_progress: bool
) -> RunData:
    """Everything, from files that are there."""
    stages = {"mka": settings.mka, "da": settings.da}
    batches = {
        name: _open_stage(settings, stage, tokenizer, show_progress=show_progress)
        for name, stage in stages.items()
    }
    evaluation = settings.evaluation
    tasks = (
        load_tasks(evaluation.folder, evaluation.tasks, limit=evaluation.limit)
        if evaluation.folder
        else []
    )
    report: dict[str, Any] = {
        name: dataclasses.asdict(each.report) | {"steps": total_steps(stages[name], each)}
        for name, each in batches.items()
    }
    report["overlap"] = _check_overlap(settings, tasks) if tasks else None
    return RunData(batches["mka"], batches["da"], tasks, report)


def check_files(settings: Settings) -> None:
    """Raises, before anything large is read, if a file that the settings name is not there.

    Raises:
      SettingsError: A stage has no files.
      FileNotFoundError: Names the key, the path and where it was looked for.
    """
    for name, stage in (("mka", settings.mka), ("da", settings.da)):
        if not stage.files and not settings.icd10.make:
            raise SettingsError(f"{name}.files is empty; name at least one file of dialogues")
        for file in stage.files:
            path = pathlib.Path(file)
            # A prepared folder's split, as in data/prepared/train, is no file of its own.
            if not path.exists() and not (path.parent / "dataset_info.json").exists():
                raise FileNotFoundError(f"{name}.files: no file or folder {path.absolute()}")
    folder = settings.evaluation.folder
    if folder and not pathlib.Path(folder).is_dir():
        raise FileNotFoundError(f"evaluation.folder: no folder {pathlib.Path(folder).absolute()}")


def total_steps(recipe: StageSettings, batches: TrainingBatches) -> int:
    """Where a stage ends: after its epochs, or earlier if it is told to."""
    return min(recipe.max_steps or batches.num_batches, batches.num_batches)


def _with_demo_tasks(settings: Settings, workdir: pathlib.Path) -> Settings:
    """Settings whose empty file lists name the demo's files, which are made if need be."""
    sizes = dataclasses.asdict(settings.icd10)
    sizes.pop("make")
    folder = workdir / "data"
    with together():
        if distributed.is_first():
            write_icd10_tasks(folder, seed=settings.seed, **sizes)

    def filled(stage: StageSettings, name: str) -> StageSettings:
        path = folder / f"{name}.json"
        return stage if stage.files else dataclasses.replace(stage, files=(str(path),))

    evaluation = settings.evaluation
    return dataclasses.replace(
        settings,
        mka=filled(settings.mka, "1-stage/train"),
        da=filled(settings.da, "2-stage/train"),
        evaluation=dataclasses.replace(
            evaluation, folder=evaluation.folder or str(folder / "test")
        ),
    )


def _open_stage(
    settings: Settings,
    stage: StageSettings,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    show_progress: bool,
) -> TrainingBatches:
    """The batches of one stage."""
    data = settings.data
    return make_batches(
        tokenizer,
        files=stage.files,
        weights=stage.weights,
        row_length=data.row_length,
        rows=data.rows,
        epochs=stage.epochs,
        targets=data.targets,
        over_long=data.over_long,
        on_bad_record=data.on_bad_record,
        seed=settings.seed,
        show_progress=show_progress,
    )


def _check_overlap(settings: Settings, tasks: list[Task]) -> dict[str, Any]:
    """What the check for evaluation questions in the training data found."""
    on_bad = settings.data.on_bad_record
    files = dict.fromkeys((*settings.mka.files, *settings.da.files))
    training = [open_records(file, on_bad_record=on_bad) for file in files]
    found = find_overlap(training, [open_records(task.path) for task in tasks])
    if found.overlaps and settings.data.check_overlap:
        rows = [f"  {each.evaluation} is {', '.join(each.training)}" for each in found.overlaps]
        raise OverlapError(
            f"{len(rows)} evaluation questions are in the training data, so their scores would "
            "say nothing. Take them out, or set data.check_overlap to False:\n"
            + "\n".join(rows[:20])
        )
    return dataclasses.asdict(found)
