"""Scores a model on medical tasks, or answers that are in a file already.

    python tools/evaluate.py --model=PATH --data=DIR --output=DIR [--tasks=all|NAME,NAME]
        [--protocols=generate,likelihood] [--rules=reference|strict] [--limit=N] [--no_samples]
    python tools/evaluate.py --model=RUN --stage=mka [--step=120] [--keep=attention,knowledge] ...
    python tools/evaluate.py --model=PATH --prompts=FILE.jsonl --output=FILE.jsonl
    python tools/evaluate.py --predictions=FILE.jsonl --tasks=NAME [--data=DIR] [--rules=strict]

A model is a Hugging Face folder, a .gguf file, `embedded`, a name of the hub, the workdir of a run,
or adapters with --base. Killed at any point, the same command goes on. See docs/evaluation.md.
"""

import pathlib

from absl import app, flags

from medcare_jax.run.command import run

_MODEL = flags.DEFINE_string("model", None, "What to score: a path, `embedded` or ORG/NAME.")
_BASE = flags.DEFINE_string("base", "", "Base model of adapters: a path, or ORG/NAME@REVISION.")
_KEEP = flags.DEFINE_list(
    "keep", [], "Among attention, knowledge, noise, alignment; unset: all but noise."
)
_STAGE = flags.DEFINE_enum("stage", None, ["mka", "da"], "Of a run; unset: the latest it has.")
_STEP = flags.DEFINE_integer("step", None, "Of that stage; unset: its newest good checkpoint.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Of weights and arithmetic."
)
_TASKS = flags.DEFINE_list("tasks", ["all"], "Names of tasks or of their files, or all.")
_DATA = flags.DEFINE_string("data", None, "Folder of test files.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the results; of --prompts, a file.")
_PROTOCOLS = flags.DEFINE_list("protocols", ["generate"], "generate, likelihood, or both.")
_RULES = flags.DEFINE_enum("rules", "reference", ["reference", "strict"], "How answers are read.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Items per task, spread over its file; 0: all.", 0)
_BATCH = flags.DEFINE_integer("batch", 16, "Prompts at once.", 1)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 0, "Longest written answer; 0: each task's own.", 0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the bootstrap.")
_NO_SAMPLES = flags.DEFINE_bool("no_samples", False, "Write no prompts and no answers.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the results of another model.")
_PROMPTS = flags.DEFINE_string("prompts", None, "A file of prompts to answer, without scores.")
_PREDICTIONS = flags.DEFINE_string("predictions", None, "A file of answers to score.")


def main() -> None:
    """Scores."""
    from medcare_jax.evaluation.tasks import PROTOCOLS
    from medcare_jax.run.progress import Display

    if bool(_MODEL.value) == bool(_PREDICTIONS.value):
        raise app.UsageError("Give --model=PATH or --predictions=FILE.")
    if unknown := set(_PROTOCOLS.value) - set(PROTOCOLS):
        raise app.UsageError(f"--protocols: {', '.join(unknown)}; known: {', '.join(PROTOCOLS)}")
    if _PREDICTIONS.value:
        _score_file(Display())
    elif _PROMPTS.value:
        _answer_prompts(Display())
    else:
        _score_model(Display())


def _score_file(display) -> None:
    """The answers of a file."""
    from medcare_jax.run.evaluation import run_predictions

    if len(_TASKS.value) != 1 or _TASKS.value == ["all"]:
        raise app.UsageError("--predictions is of one task; name it with --tasks=NAME.")
    run_predictions(
        pathlib.Path(_PREDICTIONS.value),
        _TASKS.value[0],
        _RULES.value,
        display,
        data=pathlib.Path(_DATA.value) if _DATA.value else None,
        output=pathlib.Path(_OUTPUT.value) if _OUTPUT.value else None,
    )


def _asked():
    """Which model."""
    from medcare_jax.run.subjects import Asked

    return Asked(
        path=_MODEL.value,
        base=_BASE.value,
        keep=tuple(_KEEP.value),
        stage=_STAGE.value or "",
        step=_STEP.value,
        dtype=_DTYPE.value,
    )


def _answer_prompts(display) -> None:
    """A file of prompts."""
    from medcare_jax.run.evaluation import run_prompts
    from medcare_jax.run.prompts import Generation

    if not _OUTPUT.value:
        raise app.UsageError("--prompts needs --output=FILE.")
    longest = {"max_new_tokens": _MAX_NEW_TOKENS.value} if _MAX_NEW_TOKENS.value else {}
    generation = Generation(batch=_BATCH.value, seed=_SEED.value, **longest)
    source, target = pathlib.Path(_PROMPTS.value), pathlib.Path(_OUTPUT.value)
    run_prompts(_asked(), source, target, generation, display)


def _score_model(display) -> None:
    """A model's answers."""
    from medcare_jax.evaluation.evaluator import Options
    from medcare_jax.evaluation.tasks import PROTOCOLS
    from medcare_jax.run.evaluation import Evaluation, run_evaluation

    if not _DATA.value or not _OUTPUT.value:
        raise app.UsageError("--model needs --data=DIR and --output=DIR.")
    options = Options(
        protocols=tuple(protocol for protocol in PROTOCOLS if protocol in _PROTOCOLS.value),
        rules=_RULES.value,
        batch=_BATCH.value,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        limit=_LIMIT.value,
        seed=_SEED.value,
        dtype=_DTYPE.value,
    )
    asked = Evaluation(
        model=_asked(),
        data=pathlib.Path(_DATA.value),
        tasks=tuple(_TASKS.value),
        output=pathlib.Path(_OUTPUT.value),
        options=options,
        write_samples=not _NO_SAMPLES.value,
        overwrite=_OVERWRITE.value,
    )
    run_evaluation(asked, display)


if __name__ == "__main__":
    run(main)
