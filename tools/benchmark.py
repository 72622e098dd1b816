"""Measures this project on whatever device is there, against other ways in the same run.

    python tools/benchmark.py --config=configs/benchmark_128m.py --output=result.json
    python tools/benchmark.py --subject=packing --config=configs/benchmark_128m.py \
        --data=train.json --tokenizer=FOLDER --config.data.row_length=1024

Prints a table and writes everything as JSON. Subjects: `step`, the train step against PyTorch;
`packing`, packed rows against padded batches. Exit code 1 if contenders that compute the same thing
have different losses: then their times mean nothing.
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

_CONFIG = config_flags.DEFINE_config_file("config", None, "Shapes: a file of configs/.")
_SUBJECT = flags.DEFINE_enum("subject", "step", ["step", "packing"], "What is measured.")
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
flags.mark_flag_as_required("config")


def main() -> None:
    """Runs the benchmark, prints the table, writes the JSON."""
    console = Console()
    subject = {"step": _step, "packing": _packing}[_SUBJECT.value]
    shared = {"repeats": _REPEATS.value, "report": functools.partial(console.print, markup=False)}
    result, table = subject(_CONFIG.value.to_dict(), **shared)
    console.print(table)
    if _OUTPUT.value:
        write_json(pathlib.Path(_OUTPUT.value), result)
    if not result.get("losses", {}).get("agree", True):
        sys.exit(1)


def _step(config: dict[str, Any], **shared: Any) -> tuple[dict[str, Any], Any]:
    """The train step's result and table."""
    result = step.measure(
        config,
        contenders=_CONTENDERS.value,
        steps=_STEPS.value,
        cores=_CORES.value,
        **shared,
    )
    return result, step.table(result)


def _packing(config: dict[str, Any], **shared: Any) -> tuple[dict[str, Any], Any]:
    """The packing's result and table."""
    from medcare_jax.conversion.embedded import find_embedded_model
    from medcare_jax.conversion.huggingface import load_tokenizer

    if not _DATA.value:
        raise ValueError("--subject=packing needs --data=FILE with dialogues")
    folder = pathlib.Path(_TOKENIZER.value) if _TOKENIZER.value else find_embedded_model()
    result = packing.measure(
        config,
        data=pathlib.Path(_DATA.value),
        tokenizer=load_tokenizer(folder),
        is_timed=_TIMED.value,
        **shared,
    )
    return result, packing.table(result)


if __name__ == "__main__":
    run(main)
