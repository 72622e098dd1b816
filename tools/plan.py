"""Says what a stage needs on a TPU slice and about how fast it is; no TPU is needed.

    python tools/plan.py --config=configs/qwen1_5_7b.py --topology=v5e:4x4 --stage=mka \
        [--slices=2] [--tokens=500000000] [--json=FILE] [--search]

Compiles the run's own train step with the TPU compiler (the extra `tpu`), which takes minutes.
"""

import dataclasses
import pathlib

from absl import flags
from ml_collections import config_flags

from medcare_jax.files import write_json
from medcare_jax.planning import screen
from medcare_jax.planning.plan import duration
from medcare_jax.planning.search import search
from medcare_jax.planning.topologies import parse
from medcare_jax.planning.worker import plan_in_subprocess
from medcare_jax.run.command import run
from medcare_jax.settings import make_settings

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run: a file of configs/.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "A slice, such as v5e:4x4 or v5p:2x2x2.")
_SLICES = flags.DEFINE_integer("slices", 1, "Equal slices, joined by the data-centre network.")
_STAGE = flags.DEFINE_enum("stage", "mka", ("mka", "da"), "Which stage.")
_TOKENS = flags.DEFINE_integer("tokens", 0, "Tokens of the stage over all epochs; 0: not known.")
_JSON = flags.DEFINE_string("json", None, "File for the plan, or for all plans of a search.")
_SEARCH = flags.DEFINE_bool("search", False, "Try meshes, microbatches and remat policies.")
flags.mark_flags_as_required(["config", "topology"])


def main() -> None:
    """Plans, prints, writes."""
    settings = dataclasses.asdict(make_settings(_CONFIG.value))
    topology = parse(_TOPOLOGY.value, _SLICES.value)
    asked = (settings, _STAGE.value, topology.name, topology.slices)
    if _SEARCH.value:
        print(f"searching on {topology.name}, minutes for each line", flush=True)
        tell = lambda plan: print(screen.summary(plan), flush=True)
        plans = [_timed(p) for p in search(*asked, devices=topology.devices, tell=tell)]
        title = "fitting, fastest first:" if plans else "nothing of this fits"
        print("", title, *map(screen.summary, plans), sep="\n")
        result: dict[str, object] = {"plans": plans}
    else:
        print(f"compiling for {topology.name}; this takes minutes", flush=True)
        result = _timed(plan_in_subprocess(*asked))
        print(screen.render(result))
    if _JSON.value:
        write_json(pathlib.Path(_JSON.value), result)


def _timed(plan: dict[str, object]) -> dict[str, object]:
    """The plan with days and chip-hours, if the tokens are known."""
    if not _TOKENS.value or "tokens_per_second" not in plan:
        return plan
    return plan | {"tokens": _TOKENS.value} | duration(plan, _TOKENS.value)


if __name__ == "__main__":
    run(main)
