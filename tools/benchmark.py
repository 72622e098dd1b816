"""Measures this project on whatever device is there, against other ways in the same run.

    python tools/benchmark.py --config=configs/benchmark_128m.py --output=result.json
    python tools/benchmark.py --subject=packing --config=configs/benchmark_128m.py \
        --data=train.json --tokenizer=FOLDER --config.data.row_length=1024
    python tools/benchmark.py --subject=generation --model=embedded

Prints a table and writes everything as JSON. Subjects: `step`, the train step against PyTorch;
`packing`, packed rows against padded batches; `generation`, against transformers. Exit code 1 if
contenders that compute the same thing have different losses: then their times mean nothing.
"""

import functools
import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from medcare_jax.benchmarks import packing, step
from medcare_jax.benchmarks.worker import BUILDERS
from medcare_jax.files import write_json
from medcare_jax.run.command import run

_CONFIG = config_flags.DEFINE_config_file("config", None, "step, packing: a file of configs/.")
_SUBJECT = flags.DEFINE_enum(
    "subject", "step", ["step", "packing", "generation"], "What is measured."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result; unset: table only.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Times that each thing is measured.", lower_bound=1)
_CONTENDERS = flags.DEFINE_multi_enum(
    "contender", list(BUILDERS), list(BUILDERS), "step: give it once for each; unset: all."
)
_STEPS = flags.DEFINE_integer("steps", 3, "step: timed in each process.", lower_bound=1)
_CORES = flags.DEFINE_integer("cores", 0, "step: CPU cores a process; 0: all.", lower_bound=0)
_DATA = flags.DEFINE_string("data", None, "packing: file of dialogues.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "packing: folder; unset: the demo model's.")
_TIMED = flags.DEFINE_bool("timed", True, "packing: time steps, or count tokens only.")
_MODEL = flags.DEFINE_string("model", "embedded", "generation: what tools/convert.py reads.")
_PROMPTS = flags.DEFINE_integer("prompts", 64, "generation: how many.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("new_tokens", 128, "generation: for each.", lower_bound=1)


def main() -> None:
    """Runs the benchmark, prints the table, writes the JSON."""
    console = Console()
    subject = {"step": _step, "packing": _packing, "generation": _generation}[_SUBJECT.value]
    shared = {"repeats": _REPEATS.value, "report": functools.partial(console.print, markup=False)}
    result, table = subject(**shared)
    console.print(table)
    if _OUTPUT.value:
        write_json(pathlib.Path(_OUTPUT.value), result)
    if not result.get("losses", {}).get("agree", True):
        sys.exit(1)


def _config() -> dict[str, Any]:
    """The config that a subject cannot do without."""
    if _CONFIG.value is None:
        raise ValueError(f"--subject={_SUBJECT.value} needs --config=FILE, a file of configs/")
    return _CONFIG.value.to_dict()


def _step(**shared: Any) -> tuple[dict[str, Any], Any]:
    """The train step's result and table."""
    result = step.measure(
        _config(),
        contenders=_CONTENDERS.value,
        steps=_STEPS.value,
        cores=_CORES.value,
        **shared,
    )
    return result, step.table(result)


def _packing(**shared: Any) -> tuple[dict[str, Any], Any]:
    """The packing's result and table."""
    from medcare_jax.conversion.embedded import find_embedded_model
    from medcare_jax.conversion.huggingface import load_tokenizer

    if not _DATA.value:
        raise ValueError("--subject=packing needs --data=FILE with dialogues")
    folder = pathlib.Path(_TOKENIZER.value) if _TOKENIZER.value else find_embedded_model()
    result = packing.measure(
        _config(),
        data=pathlib.Path(_DATA.value),
        tokenizer=load_tokenizer(folder),
        is_timed=_TIMED.value,
        **shared,
    )
    return result, packing.table(result)


def _generation(**shared: Any) -> tuple[dict[str, Any], Any]:
    """The generation's result and table."""
    from medcare_jax.benchmarks import generation
    from medcare_jax.run.opening import open_folded

    opened = open_folded(_MODEL.value)
    result = generation.measure(opened, prompts=_PROMPTS.value, new_tokens=_TOKENS.value, **shared)
    return result, generation.table(result)


if __name__ == "__main__":
    run(main)
