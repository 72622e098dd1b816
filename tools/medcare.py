"""Takes a base model through MKA and DA, evaluates it, exports it and writes a report.

    python tools/medcare.py --config=configs/smollm2_135m.py --workdir=runs/demo

Called again with the same workdir it goes on where it stopped.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from medcare_jax import distributed
from medcare_jax.run.cluster import join
from medcare_jax.run.command import run
from medcare_jax.run.progress import Display
from medcare_jax.settings import make_settings

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run: a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if absent.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Runs the job."""
    from medcare_jax.run.job import run_job

    settings = make_settings(_CONFIG.value)
    join()
    display = Display(is_shown=distributed.is_first())
    run_job(settings, pathlib.Path(_WORKDIR.value), display)


if __name__ == "__main__":
    run(main)
