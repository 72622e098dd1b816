"""Scores a model on medical tasks, or answers that are in a file already.

    python tools/evaluate.py --model=PATH --data=DIR --output=DIR [--tasks=all|NAME,NAME]
        [--protocols=generate,likelihood] [--rules=reference|strict] [--limit=N] [--no_samples]
    python tools/evaluate.py --model=RUN --stage=mka [--step=120] [--keep=attention,knowledge] ...
    python tools/evaluate.py --model=PATH --prompts=FILE.jsonl --output=FILE.jsonl
    python tools/evaluate.py --predictions=FILE.jsonl --tasks=NAME [--data=DIR] [--rules=strict]
    python tools/evaluate.py --output=DIR --judge_only --judge_url=URL --judge_model=NAME
    python tools/evaluate.py --compare=DIR,DIR --output=DIR

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
_SEED = flags.DEFINE_integer("seed", 0, "Of the bootstrap.", 0)
_NO_SAMPLES = flags.DEFINE_bool("no_samples", False, "Write no prompts and no answers.")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace results of another evaluation, or answers of --prompts."
)
_PROMPTS = flags.DEFINE_string("prompts", None, "A file of prompts to answer, without scores.")
_PREDICTIONS = flags.DEFINE_string("predictions", None, "A file of answers to score.")
_COMPARE = flags.DEFINE_list("compare", [], "Folders of results to compare with the first of them.")
_JUDGE_URL = flags.DEFINE_string(
    "judge_url", "", "OpenAI-compatible endpoint that marks open answers; unset: nothing is sent."
)
_JUDGE_MODEL = flags.DEFINE_string("judge_model", "", "The judge, as its endpoint names it.")
_JUDGE_TASKS = flags.DEFINE_list(
    "judge_tasks",
    [],
    "Names as --tasks takes them, to be marked; unset: the tasks that only a judge can score.",
)
_JUDGE_ONLY = flags.DEFINE_bool("judge_only", False, "Mark the answers in --output, no more.")
_JUDGE_WORKERS = flags.DEFINE_integer("judge_workers", 4, "Requests at once.", 1)
_JUDGE_TIMEOUT = flags.DEFINE_float("judge_timeout", 120.0, "Seconds for an answer.", 0.1)
_JUDGE_PROMPT_PRICE = flags.DEFINE_float(
    "judge_prompt_price", 0.0, "Money per million prompt tokens.", 0.0
)
_JUDGE_COMPLETION_PRICE = flags.DEFINE_float(
    "judge_completion_price", 0.0, "Money per million tokens of replies.", 0.0
)
_JUDGE_MAX_MONEY = flags.DEFINE_float("judge_max_money", 0.0, "Spend no more; 0: no limit.", 0.0)
_JUDGE_MAX_TOKENS = flags.DEFINE_integer("judge_max_tokens", 0, "The same in tokens.", 0)
_OF_A_MODEL = (
    "base", "batch", "dtype", "keep", "limit", "max_new_tokens", "protocols", "stage", "step",
)  # fmt: skip
_OF_SCORES = ("data", "model", "no_samples", "overwrite", "rules", "seed", "tasks")
_OF_A_JUDGE = (
    "judge_completion_price", "judge_max_money", "judge_max_tokens", "judge_model", "judge_only",
    "judge_prompt_price", "judge_tasks", "judge_timeout", "judge_url", "judge_workers",
)  # fmt: skip
_UNUSED = {
    "compare": (*_OF_A_MODEL, *_OF_SCORES, *_OF_A_JUDGE, "predictions", "prompts"),
    "judge_only": (*_OF_A_MODEL, *_OF_SCORES, "predictions", "prompts"),
    "predictions": (*_OF_A_MODEL, "prompts"),
    "prompts": ("data", "limit", "no_samples", "protocols", "rules", "tasks"),
}
"""By what is asked for, the flags that mean nothing there."""


def main() -> None:
    """Scores, marks or compares."""
    from medcare_jax.evaluation.tasks import PROTOCOLS
    from medcare_jax.run.progress import Display

    display = Display()
    _refuse_unused()
    marking = _marking()  # before hours of work, so that a wrong address costs none of them
    if _PROMPTS.value and marking is not None:
        raise app.UsageError("--prompts scores nothing, so no judge can mark it; give --data=DIR.")
    if _NO_SAMPLES.value and marking is not None:
        raise app.UsageError("--no_samples keeps no answers, so no judge can mark them.")
    if _COMPARE.value:
        _compare(display)
        return
    if _JUDGE_ONLY.value:
        if marking is None or not _OUTPUT.value:
            raise app.UsageError("--judge_only needs --output, --judge_url and --judge_model.")
        _mark(marking, display)
        return
    if bool(_MODEL.value) == bool(_PREDICTIONS.value):
        raise app.UsageError("Give --model=PATH or --predictions=FILE.")
    if unknown := set(_PROTOCOLS.value) - set(PROTOCOLS):
        raise app.UsageError(f"--protocols: {', '.join(unknown)}; known: {', '.join(PROTOCOLS)}")
    if _PREDICTIONS.value:
        _score_file(display, marking)
    elif _PROMPTS.value:
        _answer_prompts(display)
    else:
        _score_model(display, marking)
    if marking is not None:
        _mark(marking, display)


def _refuse_unused() -> None:
    """No flag is given in vain: who limits or chooses something believes in what comes out."""
    for mode, unused in _UNUSED.items():
        given = [name for name in unused if flags.FLAGS[name].present]
        if flags.FLAGS[mode].value and given:
            names = ", ".join(f"--{name}" for name in given)
            raise app.UsageError(f"{names}: without meaning beside --{mode}; leave it out.")


def _marking():
    """The judge, if one is named."""
    if not _JUDGE_URL.value:
        if _JUDGE_MODEL.value or _JUDGE_TASKS.value:
            raise app.UsageError("A judge needs --judge_url=https://HOST/v1; nothing was sent.")
        return None
    from medcare_jax.evaluation.judging.endpoint import Endpoint
    from medcare_jax.evaluation.judging.judge import Budget
    from medcare_jax.evaluation.tasks import task_name
    from medcare_jax.run.marking import Marking

    if not _OUTPUT.value:
        raise app.UsageError("A judge needs --output=DIR, where the answers lie.")
    return Marking(
        endpoint=Endpoint(_JUDGE_URL.value, _JUDGE_MODEL.value, timeout=_JUDGE_TIMEOUT.value),
        tasks=tuple(dict.fromkeys(map(task_name, _JUDGE_TASKS.value))),
        budget=Budget(
            prompt_price=_JUDGE_PROMPT_PRICE.value,
            completion_price=_JUDGE_COMPLETION_PRICE.value,
            most_money=_JUDGE_MAX_MONEY.value,
            most_tokens=_JUDGE_MAX_TOKENS.value,
        ),
        workers=_JUDGE_WORKERS.value,
    )


def _mark(marking, display) -> None:
    """The judge's marks."""
    from medcare_jax.run.marking import mark_answers

    mark_answers(pathlib.Path(_OUTPUT.value), marking, display)


def _compare(display) -> None:
    """Evaluations side by side."""
    from medcare_jax.evaluation.report.paired import compare_folders

    if not _OUTPUT.value:
        raise app.UsageError("--compare needs --output=DIR.")
    folders = [pathlib.Path(folder) for folder in _COMPARE.value]
    for path in compare_folders(folders, pathlib.Path(_OUTPUT.value)):
        display.line(f"comparison: {path}")


def _score_file(display, marking) -> None:
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
        seed=_SEED.value,
        write_samples=not _NO_SAMPLES.value,
        overwrite=_OVERWRITE.value,
        marking=marking,
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
    overwrite = _OVERWRITE.value
    run_prompts(_asked(), source, target, generation, display, overwrite=overwrite)


def _score_model(display, marking) -> None:
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
        marking=marking,
    )
    run_evaluation(asked, display)


if __name__ == "__main__":
    run(main)
