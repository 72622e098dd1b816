"""What a run leaves behind for a person: scores, the exported model, the report."""

import dataclasses
import hashlib
import pathlib
import shutil
from typing import Any

from medcare_jax import distributed
from medcare_jax.conversion.huggingface import save_huggingface
from medcare_jax.evaluation.evaluator import evaluate
from medcare_jax.evaluation.report.run_report import RunReport, StageCurve, write_report
from medcare_jax.evaluation.tasks import Task
from medcare_jax.files import read_json, write_json
from medcare_jax.models.aggregators import Components
from medcare_jax.models.folding import fold
from medcare_jax.params import Tree, digest, merge
from medcare_jax.run.context import Run
from medcare_jax.run.data import RunData
from medcare_jax.run.facts import versions
from medcare_jax.run.model_card import model_card
from medcare_jax.settings import DTYPES
from medcare_jax.training.history import read_history
from medcare_jax.training.loop import StoppedEarly
from medcare_jax.version import __version__

# What the projection promises of ||Q^T A|| / ||A|| with float32 masters.
LEAK_LIMIT = 1e-6
_FEW_STEPS = 10
STAGE_NAMES = {"mka": "MKA: knowledge aggregation", "da": "DA: downstream alignment"}


def data_summary(data: RunData) -> str:
    """One line on what was read."""
    kept = {name: sum(f["kept"] for f in data.report[name]["files"]) for name in STAGE_NAMES}
    over_long = sum(f["over_long"] for name in kept for f in data.report[name]["files"])
    items = sum(len(task.items) for task in data.tasks)
    found = "none of them in the training data" if _is_clean(data) else "some in the training data"
    return (
        f"{kept['mka']} dialogues in {data.report['mka']['steps']} steps of MKA, {kept['da']} in "
        f"{data.report['da']['steps']} steps of DA, {over_long} over-long; {items} "
        f"evaluation items{', ' + found if items else ''}"
    )


def data_warnings(data: RunData) -> list[str]:
    """What a person should know before the run goes on; empty if all is well."""
    said = []
    for name in STAGE_NAMES:
        report = data.report[name]
        for file in report["files"]:
            if file["over_long"]:
                verb = "dropped" if report["over_long"] == "drop" else "cut"
                said.append(
                    f"{file['over_long']} of {file['records']} dialogues of {file['path']} are "
                    f"longer than data.row_length = {report['row_length']} tokens and are {verb}"
                )
            if file["bad_records"]:
                said.append(f"{file['bad_records']} bad records of {file['path']} are left out")
        if report["steps"] < _FEW_STEPS:
            said.append(
                f"{name} has only {report['steps']} steps; raise {name}.epochs or lower data.rows"
            )
    return said


def _is_clean(data: RunData) -> bool:
    """Whether no evaluation question was found in the training data."""
    return not (data.report["overlap"] or {}).get("overlaps")


def score(run: Run, name: str, components: Components, trees: dict[str, Tree]) -> None:
    """Writes `evaluation/NAME.json`, unless one for the same weights and tasks is there."""
    path = run.workdir / "evaluation" / f"{name}.json"
    asked = {
        "weights": digest(merge(trees)),
        "tasks": _tasks_digest(run.data.tasks),
        "write_samples": run.settings.evaluation.write_samples,
        "max_new_tokens": run.settings.evaluation.max_new_tokens,
    }
    known = read_json(path)
    if known is not None and known["asked"] == asked:
        run.display.line(f"{name}: scores are there already")
        return
    total = sum(len(task.items) for task in run.data.tasks)
    done = 0
    with run.display.bar(f"{name} scores", total) as bar:

        def count(task: str, items: int) -> None:
            nonlocal done
            done += items
            bar.update(done, {})
            if distributed.must_stop():
                raise StoppedEarly(f"stopped while scoring {name}; training so far is kept")

        scores = evaluate(
            run.decoder(components),
            merge(trees),
            run.base.tokenizer,
            run.data.tasks,
            batch=run.settings.evaluation.batch,
            max_new_tokens=run.settings.evaluation.max_new_tokens,
            seed=run.settings.seed,
            samples_path=_samples_path(run, name),
            on_done=count,
        )
    if distributed.is_first():
        write_json(path, {"asked": asked, "scores": scores})
    for task, result in scores.items():
        headline = result["scores"][result["metric"]]
        run.display.line(
            f"  {task:<18} {result['metric']:<12} {100 * headline['score']:5.1f} % "
            f"({100 * headline['low']:.1f} to {100 * headline['high']:.1f})"
        )


def _tasks_digest(tasks: list[Task]) -> str:
    """What stands for all items of all tasks, so that edited test files are scored again."""
    return hashlib.sha256(repr([(task.name, task.items) for task in tasks]).encode()).hexdigest()


def _samples_path(run: Run, name: str) -> pathlib.Path | None:
    """Where prompts and outputs go, if they were asked for."""
    if not run.settings.evaluation.write_samples or not distributed.is_first():
        return None
    (run.workdir / "evaluation").mkdir(exist_ok=True)
    return run.workdir / "evaluation" / f"{name}.samples.jsonl"


def export(run: Run, trees: dict[str, Tree]) -> None:
    """Writes the folded model to `export/`, unless it is there already."""
    path, record = run.workdir / "export", run.workdir / "export.json"
    asked = {"weights": digest(merge(trees)), "dtype": run.settings.export.dtype}
    if path.exists() and read_json(record) == asked:
        run.display.line(f"{path} is there already")
        return
    shutil.rmtree(path, ignore_errors=True)
    dtype = DTYPES[run.settings.export.dtype]
    save_huggingface(
        path,
        run.base.settings,
        fold(merge(trees), run.settings.adapters, dtype=dtype),
        run.base.tokenizer,
        dtype=dtype,
        shard_bytes=int(run.settings.export.shard_gib * 2**30),
        card=model_card(
            run.settings,
            base=run.base.name,
            digest=run.base.digest,
            data=run.data.report,
            version=__version__,
        ),
        generation_config=run.base.generation_config,
    )
    write_json(record, asked)
    run.display.line(f"exported to {path}")


def report(run: Run) -> None:
    """Writes `report.md` and `report.html` from what is in the workdir."""
    found = {
        name: read_json(run.workdir / "evaluation" / f"{name}.json")
        for name in ("base", "mka", "da")
    }
    content = RunReport(
        title=f"MedCare on {run.base.name}",
        base=run.base.name,
        stages=tuple(
            _curve(run.workdir, name, is_projected=run.settings.constraint.is_exact)
            for name in STAGE_NAMES
        ),
        scores={name: result["scores"] for name, result in found.items() if result},
        data=run.data.report,
        settings=dataclasses.asdict(run.settings),
        digests={"base": run.base.digest}
        | {f"{name} data": run.data.report[name]["fingerprint"] for name in STAGE_NAMES},
        versions=versions(),
        export=str(run.workdir / "export"),
    )
    for path in write_report(run.workdir, content):
        run.display.line(f"report: {path}")


def _curve(workdir: pathlib.Path, stage: str, *, is_projected: bool) -> StageCurve:
    """The record of a stage as the report wants it."""
    lines = read_history(workdir / stage / "metrics.jsonl")

    def column(name: str) -> tuple[Any, ...]:
        return tuple(line[name] for line in lines)

    return StageCurve(
        name=STAGE_NAMES[stage],
        step=column("step"),
        loss=column("loss"),
        learning_rate=column("learning_rate"),
        tokens_per_second=column("tokens_per_second"),
        leak=column("leak") if stage == "da" else (),
        leak_limit=LEAK_LIMIT if stage == "da" and is_projected else None,
    )
