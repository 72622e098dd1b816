"""Joining the processes of a run, and agreeing on when all of them stop.

JAX's coordination service is started even for a single process: it is what turns a SIGTERM on
any host into one step after which all hosts save and leave.
"""

import contextlib
import itertools
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

from medcare_jax import interrupts

# A process that has said nothing for this long is taken for dead, and all others end.
HEARTBEAT_SECONDS = 60
# How long a process that is done waits for the others to be done too.
_SHUTDOWN_SECONDS = 60
# How long the first process stays after an error, so that the others can say what they have to.
_LAST_WORDS_SECONDS = 2
# What JAX's runtimes say when a peer has gone: collectives on CPU, GPU, the coordination service.
_LOSS = re.compile(r"Gloo|NCCL|coordination service|CoordinationService|[Hh]eartbeat|Socket closed")
# What launchers tell each process: how many there are. (Not the same as being able to join them.)
_LAUNCHERS = {
    "SLURM_NTASKS": "Slurm (start it with srun, one task per host or per GPU)",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "PMI_SIZE": "an MPI launcher",
}


class ClusterError(ValueError):
    """The processes of a run do not find each other; the message says what to give."""


class StoppedEarly(Exception):  # noqa: N818 - not an error: the run was asked to end
    """The process was told to end; a checkpoint was written and the same command goes on."""


class Place(NamedTuple):
    """Where this process stands among those of a run; what is None, the environment says.

    Attributes:
      coordinator_address: `HOST:PORT` of process 0, the same for all.
      num_processes: How many there are.
      process_id: Which of them this is, from 0.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


ANYWHERE = Place()


def start(place: Place = ANYWHERE, *, wait_seconds: int = 300) -> None:
    """Joins the processes of a run, or makes a cluster of this process alone.

    Where JAX knows the launcher (Cloud TPU VMs, GKE with one or several slices, Slurm, Open MPI up
    to version 4, Kubernetes jobs with the package `kubernetes`) nothing has to be given. Call it
    before anything else of JAX.

    Args:
      place: What was given by hand; all three, or `num_processes=1`, or nothing.
      wait_seconds: How long the others may take to come.

    Raises:
      ClusterError: Part of a place is missing, or a launcher started several processes that
        cannot find each other.
    """
    check_place(place)
    jax.config.update("jax_enable_preemption_service", True)
    interrupts.watch()
    if place.num_processes == 1:
        _start_alone()
        return
    with _giving_up(place, wait_seconds):
        try:
            jax.distributed.initialize(
                *place,
                # Longer than ours: when JAX gives up it ends the process with a native trace.
                initialization_timeout=2 * wait_seconds + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        except ValueError:  # JAX knows no launcher here
            if place != ANYWHERE:
                raise
            check_alone(os.environ)
            _start_alone()
        if jax.process_count() > 1:
            # Here, where all are at hand: on CPU the first meeting must not take over 30 s.
            multihost_utils.sync_global_devices("joined")


def check_place(place: Place) -> None:
    """Raises unless a place is whole.

    Raises:
      ClusterError: Names what is missing or out of range.

    >>> check_place(Place("10.0.0.2:8476", 4, 3))
    """
    if place == ANYWHERE or (place.num_processes == 1 and not place.process_id):
        return
    missing = [name for name, value in place._asdict().items() if value is None]
    if missing:
        raise ClusterError(
            f"{', '.join(missing)} not given; every process needs coordinator_address (HOST:PORT "
            "of process 0), num_processes and process_id, or none of them where the launcher is "
            "known"
        )
    address, num_processes, process_id = place
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise ClusterError(f"coordinator_address {address!r}; expected HOST:PORT")
    if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
        raise ClusterError(
            f"process_id {process_id} of {num_processes} processes; expected 0 to num_processes - 1"
        )


def check_alone(environ: Mapping[str, str]) -> None:
    """Raises if a launcher says that there are several processes, which would not know of others.

    Raises:
      ClusterError: Names the launcher and what to give.

    >>> check_alone({"SLURM_NTASKS": "1"})
    """
    for name, launcher in _LAUNCHERS.items():
        if environ.get(name, "1") not in ("", "1"):
            raise ClusterError(
                f"{name} = {environ[name]}, but these processes cannot find each other by what "
                f"{launcher} says. Give each --coordinator_address=HOST:PORT (of process 0), "
                "--num_processes and --process_id; or --num_processes=1 if this one is alone"
            )


def _start_alone() -> None:
    """A cluster of one; the service only listens on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    jax.distributed.initialize(
        coordinator_address=address,
        coordinator_bind_address=address,
        num_processes=1,
        process_id=0,
    )


@contextlib.contextmanager
def _giving_up(place: Place, wait_seconds: int) -> Iterator[None]:
    """Ends the process with a message if the block takes longer than that.

    A thread of its own, since JAX waits outside Python.
    """

    def give_up() -> None:
        expected = place.num_processes or "all"
        address = place.coordinator_address or "an address that the environment names"
        print(
            f"\nClusterError: waited {wait_seconds} s, and not all processes have come: expected "
            f"{expected} at {address}. Is the same command running on every host, with the same "
            "address and number of processes and each process_id once? Does a firewall let them "
            "reach process 0? --join_timeout sets how long to wait (seconds)",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(wait_seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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


def is_first() -> bool:
    """Whether this process is the one that writes logs and reports."""
    return jax.process_index() == 0


def has_peers() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def lost_peer(error: Exception) -> str | None:
    """What to say of an error that means that another process has gone; None for any other."""
    if not has_peers() or not _LOSS.search(str(error)):
        return None
    return (
        f"process {jax.process_index()} of {jax.process_count()} cannot go on: another process of "
        "the run has ended (its own output says why; a killed or pre-empted host says nothing). "
        f"The same command on all hosts goes on from the last checkpoint. [{str(error)[:200]}]"
    )


def abandon(code: int) -> None:
    """Ends this process after an error, without waiting for the others; alone it does nothing.

    They notice: what they compute with this process fails, or its heartbeat stays away. The first
    goes last, because the service that all talk to goes with it.
    """
    if not has_peers():
        return
    if is_first():
        time.sleep(_LAST_WORDS_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
