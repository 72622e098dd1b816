"""A tiny DA stage over two epochs of dialogues, in this process or as a program to be killed.

python -m tests.training.runs --folder=FOLDER --pause=SECONDS
"""

import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh

from medcare_jax import distributed
from medcare_jax.conversion.bases import byte_tokenizer
from medcare_jax.data.pipeline import TrainingBatches, make_batches
from medcare_jax.params import digest
from medcare_jax.run import command
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh, tree_shardings
from medcare_jax.training.loop import StageRun, run_stage
from medcare_jax.training.optimizer import make_schedule
from medcare_jax.training.step import TrainState
from tests.training.cases import DA, RATES, make_case

FOLDER = flags.DEFINE_string("folder", None, "Where the run is.")
PAUSE = flags.DEFINE_float("pause", 0.0, "Seconds to wait after each step.")
SECRET = "Ms. Quill of Elm Street"


def tiny_batches(folder: pathlib.Path) -> TrainingBatches:
    """Two epochs of invented dialogues, four rows of 80 tokens a step."""
    random = np.random.default_rng(3)
    path = folder / "dialogues.jsonl"
    if not path.exists():
        lines = []
        for number in range(36):
            words = "".join(random.choice(list("abcdefgh "), int(random.integers(4, 24))))
            turns = [{"from": "human", "value": words}, {"from": "gpt", "value": SECRET[:9]}]
            lines.append(json.dumps({"id": f"case-{number}", "conversations": turns}))
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    return make_batches(
        byte_tokenizer(),
        files=[path],
        row_length=80,
        rows=4,
        epochs=2,
        targets="assistant",
        over_long="drop",
        on_bad_record="stop",
        seed=0,
    )


def tiny_mesh() -> Mesh:
    """Two devices."""
    return make_mesh(MeshSettings(1, 2, 1), jax.devices()[:2])


def tiny_run(folder: pathlib.Path, mesh: Mesh, **changes: Any) -> tuple[StageRun, TrainState]:
    """The stage, and a state that may be given away; dropout is on."""
    case = make_case(DA, kind="projection", dropout=0.25)
    batches = tiny_batches(folder.parent)
    frozen = jax.device_put(case.frozen, tree_shardings(mesh, case.frozen))
    fields: dict[str, Any] = {
        "folder": folder,
        "step": case.step,
        "schedule": make_schedule(RATES, 20),
        "frozen": frozen,
        "batches": batches,
        "total_steps": batches.num_batches,
        "every_steps": 2,
        "keep": 3,
        "grace_seconds": 30.0,
        "max_skipped": 0,
        "meta": {"seed": 0, "data.fingerprint": batches.fingerprint, "stage.clip_norm": 1.0},
    }
    return StageRun(**{**fields, **changes}), jax.tree.map(jnp.copy, case.state)


def state_digest(state: TrainState) -> str:
    """One number for everything that a checkpoint holds."""
    return digest({str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))})


class Steps:
    """A progress display of one line a step, which takes its time."""

    def begin(self, step: int) -> None:
        pass

    def update(self, step: int, numbers: dict[str, float]) -> None:
        """Says which step is done, and waits."""
        del numbers
        print("step", step, flush=True)
        time.sleep(PAUSE.value)


def main() -> None:
    """Runs the stage in FOLDER; the last line it prints is the digest of the last state."""
    distributed.start()
    mesh = tiny_mesh()
    run, state = tiny_run(pathlib.Path(FOLDER.value), mesh)
    print("ready", flush=True)
    with jax.set_mesh(mesh):
        print(state_digest(run_stage(run, state, mesh, Steps())), flush=True)


if __name__ == "__main__":
    command.run(main)
