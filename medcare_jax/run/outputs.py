"""What a run leaves behind for a person: scores, the exported model, the report."""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from medcare_jax import distributed
from medcare_jax.agreement import first_says
from medcare_jax.conversion import report as conversion_report
from medcare_jax.conversion.huggingface import read_along, save_huggingface
from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.data.chat import tokenizer_digest
from medcare_jax.distributed import StoppedEarly
from medcare_jax.evaluation.asking import Subject
from medcare_jax.evaluation.evaluator import Options, evaluate, num_answers
from medcare_jax.evaluation.report.run_report import RunReport, StageCurve, write_report
from medcare_jax.evaluation.results import Model, read_results
from medcare_jax.evaluation.summaries import score_lines
from medcare_jax.evaluation.tasks import PROTOCOLS, Protocol
from medcare_jax.models.aggregators import Components
from medcare_jax.models.folding import fold
from medcare_jax.params import BASE, Tree, merge
from medcare_jax.rejected import set_aside
from medcare_jax.run.context import Run
from medcare_jax.run.data import RunData
from medcare_jax.run.facts import versions
from medcare_jax.run.model_card import model_card
from medcare_jax.settings import DTYPES, EvaluationSettings, Settings
from medcare_jax.training.history import METRICS, read_history
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
        f"{kept['mka']} dialogues in {_steps(data.report['mka'])} of MKA, {kept['da']} in "
        f"{_steps(data.report['da'])} of DA, {over_long} over-long; {items} "
        f"evaluation items{', ' + found if items else ''}"
    )


def data_warnings(data: RunData) -> list[str]:
    """What a person should know before the run goes on; empty if all is well."""
    said = []
    for name in STAGE_NAMES:
        report = data.report[name]
        for file in report["files"]:
            said += _losses(file, over_long=report["over_long"], row_length=report["row_length"])
        if report["steps"] < _FEW_STEPS:
            is_told = report["steps"] < report["num_batches"]
            remedy = "max_steps" if is_told else "epochs or lower data.rows"
            said.append(f"{name} has only {_steps(report)}; raise {name}.{remedy}")
    return said


def _steps(report: Mapping[str, Any]) -> str:
    """How many optimiser steps a stage has, in words.

    >>> _steps({"steps": 1})
    '1 step'
    """
    return f"{report['steps']} step{'' if report['steps'] == 1 else 's'}"


def context_warnings(data: RunData, context: int) -> list[str]:
    """Which stages have dialogues longer than the base's context; rows may be, they are packed."""
    return [
        f"{name} has dialogues of up to {longest} tokens (data.row_length = "
        f"{data.report[name]['row_length']}), more than the base's context of {context} "
        "(max_position_embeddings), beyond which it was not trained; lower data.row_length"
        for name in STAGE_NAMES
        if (longest := getattr(data, name).longest) > context
    ]


def _losses(file: Mapping[str, Any], *, over_long: str, row_length: int) -> list[str]:
    """What of a training file is not learned from, a line for each reason."""
    said, of_all = [], f"of {file['records']} dialogues of {file['path']}"
    # Every dialogue has an answer, so only cutting leaves one without a token to learn.
    is_drop, emptied = over_long == "drop", file["without_target"]
    if affected := file["over_long"] - emptied:
        said.append(
            f"{affected} {of_all} are longer than data.row_length = {row_length} tokens and are "
            f"{'dropped' if is_drop else 'cut'}"
        )
    if emptied:
        said.append(
            f"{emptied} {of_all} have no token to learn in their first {row_length} and are "
            "dropped; raise data.row_length"
        )
    if file["leading_turns"]:
        said.append(
            f"{file['leading_turns']} answers of {file['path']} stand before the first question "
            "of their dialogue and are left out"
        )
    if file["bad_records"]:
        said.append(f"{file['bad_records']} bad records of {file['path']} are left out")
    return said


def settings_warnings(settings: Settings) -> list[str]:
    """What a person should know of what was asked for; empty if all is well."""
    constraint, adapters, found = settings.constraint, settings.adapters, []
    if adapters.experts_per_token == 1 < adapters.experts:
        found.append(
            f"adapters.experts_per_token = 1 of {adapters.experts}: the gate of the one expert is "
            "always 1, so the routers never learn whom to choose; take 2 or more"
        )
    is_free = constraint.kind == "none" or constraint.basis == "activation"
    if settings.adapters.alignment_on_attention and not is_free:
        found.append(
            f"adapters.alignment_on_attention with constraint.basis = {constraint.basis!r}: the "
            "attention's knowledge is merged into the base, so its alignment is kept off nothing; "
            "a basis of activation covers it"
        )
    # All of the penalty's slope then lies in the subspace that is projected away.
    is_idle = constraint.use_penalty and constraint.is_exact and constraint.freeze_knowledge
    if not is_idle:
        return found
    return [
        *found,
        f"constraint.kind = {constraint.kind!r} with strength 1 and frozen knowledge: the "
        "projection removes all that the penalty asks for, so the penalty does nothing; lower "
        "constraint.strength, or choose 'projection' or 'penalty' alone",
    ]


def _is_clean(data: RunData) -> bool:
    """Whether no evaluation question was found in the training data."""
    return not (data.report["overlap"] or {}).get("overlaps")


def score(
    run: Run, name: str, components: Components, trees: dict[str, Tree], *, weights: str
) -> None:
    """Writes `evaluation/NAME/results.json`, unless one for the same weights and items is there.

    `weights` stands for the values of the trees.
    """
    asked = run.settings.evaluation
    params = merge(trees)
    done = collections.Counter[str]()
    with run.display.bar(f"{name} scores", num_answers(run.data.tasks, protocols(asked))) as bar:

        def count(what: str, items: int) -> None:
            done[what] += items
            bar.update(done.total(), {})
            if distributed.must_stop():
                raise StoppedEarly(f"stopped while scoring {name}; training so far is kept")

        results = evaluate(
            Subject(run.decoder(components), params, run.base.tokenizer),
            run_model(run, name, trees, weights=weights),
            run.data.tasks,
            options_of(run.settings),
            run.workdir / "evaluation" / name,
            versions=versions(),
            write_samples=asked.write_samples,
            is_writer=distributed.is_first(),
            on_done=count,
        )
    if not done:
        run.display.line(f"{name}: scores are there already")
    for line in score_lines(results):
        run.display.line(line)


def run_model(run: Run, stage: str, trees: Mapping[str, Tree], *, weights: str) -> Model:
    """What results call a state of a run's model; `weights` stands for the values of the trees."""
    return {
        "name": run.base.name,
        "kind": "run",
        "digest": hashlib.sha256(weights.encode()).hexdigest(),
        "tokenizer": tokenizer_digest(run.base.tokenizer),
        "keep": [part for part in trees if part != BASE],
        "stage": stage,
        "step": None,
    }


def options_of(settings: Settings) -> Options:
    """What the settings of a run ask of its evaluations."""
    asked = settings.evaluation
    return Options(
        protocols=protocols(asked),
        rules="strict" if asked.rules == "strict" else "reference",
        batch=asked.batch,
        max_new_tokens=asked.max_new_tokens,
        limit=asked.limit,
        seed=settings.seed,
        dtype=settings.compute.dtype,
    )


def protocols(asked: EvaluationSettings) -> tuple[Protocol, ...]:
    """The protocols asked for, in the order of the table."""
    return tuple(protocol for protocol in PROTOCOLS if protocol in asked.protocols)


def export(run: Run, trees: dict[str, Tree], *, weights: str) -> None:
    """Writes the folded model to `export/`, unless it is there already, every byte of it.

    One that is damaged is set aside, for somebody may have worked on it, and written anew. The
    first process writes; all others give it the blocks that their devices hold.
    """
    path = run.workdir / "export"
    asked = {"weights": weights, "dtype": run.settings.export.dtype}
    if first_says(is_exported(path, asked, run.display.line)):
        run.display.line(f"{path} is there already")
        return
    dtype = DTYPES[run.settings.export.dtype]
    shard_bytes = int(run.settings.export.shard_gib * 2**30)
    folded = fold(merge(trees), run.settings.adapters, dtype=dtype)
    if not distributed.is_first():
        read_along(run.base.settings, folded, dtype=dtype, shard_bytes=shard_bytes)
        return
    save_huggingface(
        path,
        run.base.settings,
        folded,
        run.base.tokenizer,
        dtype=dtype,
        shard_bytes=shard_bytes,
        card=model_card(
            run.settings,
            base=run.base.name,
            digest=run.base.digest,
            data=run.data.report,
            version=__version__,
        ),
        generation_config=run.base.generation_config,
        finish=lambda folder, written: conversion_report.write_report(folder, asked, written),
    )
    run.display.line(f"exported to {path}")


def is_exported(path: pathlib.Path, asked: Mapping[str, Any], say: Callable[[str], None]) -> bool:
    """Whether the export is there and whole; if another one is, it is moved out of the way."""
    if not path.exists() or not distributed.is_first():
        return False
    try:
        found = conversion_report.verify(path)
        reason = "it is of other weights or another dtype"
    except (ConversionError, FileNotFoundError) as error:
        found, reason = {}, str(error)
    if all(found.get(name) == value for name, value in asked.items()):
        return True
    aside = set_aside(path, path.with_name(f"{path.name}.rejected"))
    say(f"WARNING: {path} is not used: {reason}; moved to {aside}, and written anew")
    return False


def report(run: Run) -> None:
    """Writes `report.md` and `report.html` from what is in the workdir."""
    found = {
        name: read_results(run.workdir / "evaluation" / name) for name in ("base", *STAGE_NAMES)
    }
    content = RunReport(
        title=f"MedCare on {run.base.name}",
        base=run.base.name,
        stages=tuple(
            _curve(run.workdir, name, is_projected=run.settings.constraint.is_exact)
            for name in STAGE_NAMES
        ),
        scores={name: results for name, results in found.items() if results},
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
    lines = read_history(workdir / stage / METRICS)
    # Steps that were left out have no point; the count alone tells those whose loss is finite.
    before = [0, *(line["skipped"] for line in lines)]
    lines = [
        line for line, skipped in zip(lines, before, strict=False) if line["skipped"] == skipped
    ]

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
