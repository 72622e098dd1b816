"""Trains one MKA per seed and goes on from it under several constraints; writes what came of it.

    python tools/ablate.py --config=configs/ablation_tiny.py --workdir=runs/ablation

Called again with the same workdir it goes on where it stopped; what is done is not done again.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from medcare_jax import distributed
from medcare_jax.run.cluster import join
from medcare_jax.run.command import run
from medcare_jax.run.progress import Display
from medcare_jax.study.settings import make_study

_CONFIG = config_flags.DEFINE_config_file("config", None, "The study: configs/ablation_*.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study; made if absent.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Runs the study."""
    from medcare_jax.study.runner import run_study

    study = make_study(_CONFIG.value)
    join()
    display = Display(is_shown=distributed.is_first())
    run_study(study, pathlib.Path(_WORKDIR.value), display)


if __name__ == "__main__":
    run(main)
