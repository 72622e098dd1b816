"""Makes one plan in a process of its own: `python -m medcare_jax.planning.worker < request`.

The TPU compiler ends the whole process on some slices (v5e:32x32), and it must be told before
it is loaded that no TPU is there and that another process may have it loaded too.
"""

import json
import os
import signal
import subprocess
import sys
from typing import Any

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class PlanError(ValueError):
    """What was asked for cannot be planned; the message is for the person who asked."""


def plan_in_subprocess(
    settings: dict[str, Any], stage: str, topology: str, slices: int = 1
) -> dict[str, Any]:
    """The plan of `plan.make_plan`, made in a fresh process.

    Args:
      settings: `dataclasses.asdict` of the run's settings.
      stage: `mka` or `da`.
      topology: Such as `v5e:4x4`.
      slices: How many of them.

    Raises:
      PlanError: What was asked for cannot exist, or the compiler ended.
    """
    request = {"settings": settings, "stage": stage, "topology": topology, "slices": slices}
    done = subprocess.run(
        [sys.executable, "-m", "medcare_jax.planning.worker"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=os.environ | _ENVIRONMENT,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        if "error" in answer:
            raise PlanError(answer["error"])
        return answer
    if done.returncode == -signal.SIGABRT:
        raise PlanError(
            f"the TPU compiler ended with signal {-done.returncode} on {topology} x {slices}: it "
            "does not know such a slice. Try a smaller one; v5e and v6e end at 16x16"
        )
    if done.returncode < 0:
        raise PlanError(
            f"planning on {topology} x {slices} was ended by signal {-done.returncode}; 9 mostly "
            "means that the system is out of memory (a plan of 7B or 14B takes up to 2.6 GB)"
        )
    raise PlanError("planning failed:\n" + "\n".join(done.stderr.strip().splitlines()[-15:]))


def main() -> None:
    """Reads a request, prints a plan or an error as the last line."""
    from medcare_jax.planning.plan import make_plan
    from medcare_jax.planning.topologies import TopologyError, parse
    from medcare_jax.settings import SettingsError, make_settings
    from medcare_jax.sharding import ShardingError

    request = json.load(sys.stdin)
    try:
        settings = make_settings(request["settings"])
        topology = parse(request["topology"], request["slices"])
        answer = make_plan(settings, request["stage"], topology)
    except (SettingsError, TopologyError, ShardingError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
