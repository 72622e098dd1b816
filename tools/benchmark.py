"""Measures this project on whatever device is there, against PyTorch in the same run.

    python tools/benchmark.py --config=configs/benchmark_128m.py --output=result.json

Prints a table and writes everything, machine and versions included, as JSON. Exit code 1 if
contenders that compute the same thing have different losses: then their times mean nothing.
"""

import json
import pathlib
import sys

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from medcare_jax.benchmarks import step
from medcare_jax.benchmarks.worker import BUILDERS
from medcare_jax.files import write_text
from medcare_jax.run.command import run

_CONFIG = config_flags.DEFINE_config_file("config", None, "Shapes: a file of configs/.")
_SUBJECT = flags.DEFINE_enum("subject", "step", ["step"], "What is measured.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result; unset: table only.")
_CONTENDERS = flags.DEFINE_multi_enum(
    "contender", list(BUILDERS), list(BUILDERS), "Give it once for each; unset: all."
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Processes of each contender.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 3, "Timed steps in each process.", lower_bound=1)
_CORES = flags.DEFINE_integer("cores", 0, "CPU cores for each process; 0: all.", lower_bound=0)
flags.mark_flag_as_required("config")


def main() -> None:
    """Runs the benchmark, prints the table, writes the JSON."""
    console = Console()
    result = step.measure(
        _CONFIG.value.to_dict(),
        contenders=_CONTENDERS.value,
        repeats=_REPEATS.value,
        steps=_STEPS.value,
        cores=_CORES.value,
        report=console.print,
    )
    console.print(step.table(result))
    if _OUTPUT.value:
        write_text(pathlib.Path(_OUTPUT.value), json.dumps(result, indent=1) + "\n")
    if not result["losses"]["agree"]:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
