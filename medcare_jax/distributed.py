"""Starting JAX on one host or many, and agreeing on when to stop.

JAX's coordination service is started even for a single process: it is what turns a SIGTERM on
any host into one step after which all hosts save and leave.
"""

import itertools
import logging
import os
import signal
import socket
from types import FrameType

import jax
from jax.experimental import multihost_utils

# Set by the launchers that jax.distributed finds its cluster by.
_CLUSTER_VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "COORDINATOR_ADDRESS",
    "MEGASCALE_COORDINATOR_ADDRESS",
    "TPU_WORKER_HOSTNAMES",
    "SLURM_JOB_ID",
    "OMPI_MCA_orte_hnp_uri",
)


def start() -> None:
    """Joins the cluster that the environment describes, or makes one of this process alone.

    Call it before anything else of JAX.
    """
    jax.config.update("jax_enable_preemption_service", True)
    if any(os.environ.get(name) for name in _CLUSTER_VARIABLES):
        jax.distributed.initialize()
        return
    # One process needs no peer; the service only listens on this machine.
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)
    signal.signal(signal.SIGINT, _on_interrupt)
    address = f"127.0.0.1:{_free_port()}"
    jax.distributed.initialize(
        coordinator_address=address,
        coordinator_bind_address=address,
        num_processes=1,
        process_id=0,
    )


_calls = itertools.count(1)
_is_stopping = False


def must_stop() -> bool:
    """Whether all hosts have agreed to stop now, because one of them was told to end.

    Every host has to call it equally often. JAX agrees on the call after the furthest host's
    last one, so the calls are counted here over the whole process: step numbers begin anew with
    each stage, and a SIGTERM before the first step of a resumed run would name a step long past.
    Once it is True it stays so.
    """
    global _is_stopping
    if jax.distributed.is_initialized() and not _is_stopping:
        _is_stopping = multihost_utils.reached_preemption_sync_point(next(_calls))
    return _is_stopping


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C asks for a saved stop, as SIGTERM does; a second one ends the process at once."""
    global _is_stopping
    _is_stopping = True
    signal.signal(signal.SIGINT, signal.default_int_handler)


def is_first() -> bool:
    """Whether this process is the one that writes logs and reports."""
    return jax.process_index() == 0


def _free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
