"""How the processes of a command find each other, where their launcher does not say it."""

import os

from absl import flags

from medcare_jax import distributed

_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    os.environ.get("JAX_COORDINATOR_ADDRESS") or None,
    "HOST:PORT of process 0, the same for all processes. Not needed on TPU VMs, GKE, Slurm.",
)
_COUNT = flags.DEFINE_integer(
    "num_processes",
    os.environ.get("JAX_NUM_PROCESSES") or None,
    "How many processes the run has. 1: this one is alone, whatever the environment says.",
    lower_bound=1,
)
_NUMBER = flags.DEFINE_integer(
    "process_id",
    os.environ.get("JAX_PROCESS_ID") or None,
    "Which of the processes this is, from 0.",
    lower_bound=0,
)
_TIMEOUT = flags.DEFINE_integer(
    "join_timeout", 300, "Seconds to wait until all processes have come.", lower_bound=1
)


def join() -> None:
    """Starts JAX on this process and those that it runs with.

    Raises:
      ClusterError: As `distributed.start`.
    """
    place = distributed.Place(_ADDRESS.value, _COUNT.value, _NUMBER.value)
    distributed.start(place, wait_seconds=_TIMEOUT.value)
