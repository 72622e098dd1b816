"""The folder of one run, which one process holds at a time."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator


class WorkdirError(ValueError):
    """A workdir that this run cannot use."""


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder and keeps any other run out of it until the block ends.

    The lock is the operating system's: it goes when the process goes, however that ends.

    Raises:
      WorkdirError: Another process holds it; names that process.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise WorkdirError(
                f"{workdir} is in use by process {file.read().strip() or 'unknown'}; "
                "wait for it, or name another --workdir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
