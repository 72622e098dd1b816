"""What the processes of a run tell each other; with a single process nothing is sent.

Every process has to call these in the same order.
"""

import contextlib
import functools
import hashlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


class PeerError(ValueError):
    """Another process of the run found something wrong, or the processes do not agree."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that every process leaves well, or that raises in all of them.

    Without it a process that finds, say, a file missing ends alone, and the others wait for it.
    The block itself must not compute anything that several processes take part in.

    Raises:
      PeerError: The block raised in another process; holds its message.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if jax.process_count() > 1:
        said = exchange("" if error is None else f"{type(error).__name__}: {error}")
        failed = [number for number, text in enumerate(said) if text]
        if error is None and failed:
            raise PeerError(f"process {failed[0]} of {len(said)}: {said[failed[0]]}")
    if error is not None:
        raise error


def exchange(text: str) -> list[str]:
    """What every process says, by process."""
    if jax.process_count() == 1:
        return [text]
    raw = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(raw)))).reshape(-1)
    mine = np.zeros(max(1, int(sizes.max())), np.uint8)
    mine[: len(raw)] = raw
    found = np.asarray(multihost_utils.process_allgather(mine))
    return [row[:size].tobytes().decode() for row, size in zip(found, sizes, strict=True)]


def check_same(what: str, value: str) -> None:
    """Raises unless every process has the same value, which may be long.

    Raises:
      PeerError: Names the processes that differ from the first.
    """
    digests = exchange(hashlib.sha256(value.encode()).hexdigest())
    others = [number for number, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise PeerError(
            f"{what} of process {', '.join(map(str, others))} is not that of process 0; every host "
            "must run the same command on the same files and versions"
        )


def first_says(answer: bool) -> bool:
    """The first process's answer, for what depends on files that it alone writes."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer, np.int32)))


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """The whole of an array, on every process; one leaf at a time bounds what is in memory."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(jax.device_get(array))
    return fetch_block(array, tuple(slice(0, size) for size in array.shape))


def fetch_block(array: jax.Array, index: tuple[slice, ...]) -> np.ndarray:
    """A block of an array that lies across processes, on every process.

    Only the block travels and is held whole, once on each device.
    """
    begins = np.array([part.start for part in index], np.int32)
    sizes = tuple(part.stop - part.start for part in index)
    everywhere = NamedSharding(array.sharding.mesh, P())
    return np.asarray(_cut(array, begins, sizes, everywhere).addressable_data(0))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _cut(
    array: jax.Array, begins: np.ndarray, sizes: tuple[int, ...], everywhere: NamedSharding
) -> jax.Array:
    """The block, on every device; starts are operands, so one compilation serves all layers."""
    block = jax.lax.dynamic_slice(array, tuple(begins), sizes)
    return jax.lax.with_sharding_constraint(block, everywhere)
