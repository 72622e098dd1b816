"""The folder of one run, which one run holds at a time, with all of its processes."""

import contextlib
import fcntl
import os
import pathlib
import secrets
from collections.abc import Iterator

from medcare_jax import distributed
from medcare_jax.agreement import exchange, together
from medcare_jax.files import open_own, write_text


class WorkdirError(ValueError):
    """A workdir that this run cannot use."""


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder and keeps any other run out of it until the block ends.

    The first process of a run locks it; the others look whether it is the same folder. The lock is
    the operating system's: it goes when the process goes, however that ends.

    Raises:
      WorkdirError: Another run holds it; a bucket's address; or hosts that do not share the folder.
      PeerError: Another process found one of these.
    """
    with contextlib.ExitStack() as held:
        with together():
            check_path(workdir)
            if distributed.is_first():
                held.enter_context(_lock(workdir))
        _check_shared(workdir)
        yield


def check_path(workdir: pathlib.Path) -> None:
    """Raises if a path is the address of a bucket, which no file system call understands.

    Raises:
      WorkdirError: Says what to do instead.

    >>> check_path(pathlib.Path("runs/mine"))
    """
    scheme = workdir.parts[0] if workdir.parts else ""
    if len(scheme) > 2 and scheme.endswith(":"):
        raise WorkdirError(
            f"{scheme}//... is not a folder; mount the bucket with Cloud Storage FUSE on every "
            "host and name the folder below the mount (docs/tpu.md)"
        )


@contextlib.contextmanager
def _lock(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the operating system's lock of the folder."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        opened = open_own(workdir / ".lock")
    except OSError as error:
        raise WorkdirError(
            f"{workdir} cannot be written ({error.strerror}); name another --workdir"
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkdirError(
                f"{workdir} is in use by process {file.read().decode().strip() or 'unknown'}; "
                "wait for it, or name another --workdir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def _check_shared(workdir: pathlib.Path) -> None:
    """Raises, in every process, unless all see the first one's files."""
    token = exchange(secrets.token_hex(8))[0]
    path = workdir / ".hosts"
    with together():
        if distributed.is_first():
            write_text(path, token)
    with together():
        if not path.is_file() or path.read_text() != token:
            raise WorkdirError(
                f"{workdir} is not the folder that process 0 writes to; every host needs the same "
                "folder of a shared file system at this path"
            )
