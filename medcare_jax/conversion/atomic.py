"""Folders that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping

from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.files import is_disk_full

# Called with a folder that is written but has not taken its name yet, and the sha256 by name of
# those of its files that were hashed while they were written.
Finish = Callable[[pathlib.Path, Mapping[str, str]], None]


@contextlib.contextmanager
def new_folder(target: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A folder to write into, which takes the target's name only when all went well.

    The work happens in a hidden sibling (`.NAME.partial`): the same disk, so the last step is one
    rename. Everything is flushed to disk before it. After an error nothing is left behind; what a
    killed process left is cleared by the next one.

    Args:
      target: The folder to make; its parents are made too.

    Yields:
      The sibling to write into.

    Raises:
      ConversionError: The target exists already, or its disk filled up; names the disk.
    """
    target = pathlib.Path(target).absolute()
    if target.exists():
        raise ConversionError(f"{target} exists; name another target or remove it first")
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        partial.rename(target)
        _flush(target.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and is_disk_full(error):
            raise _full_disk(target, error) from error
        raise


def _full_disk(target: pathlib.Path, error: OSError) -> ConversionError:
    """What to say when a write failed for want of room, once the half-written files are gone."""
    mebibytes = shutil.disk_usage(target.parent).free / 2**20
    return ConversionError(
        f"{target} could not be written: {error.strerror}. Nothing of it was kept; the disk of "
        f"{target.parent} has {mebibytes:.1f} MiB free now. Make room or name a target on another "
        "disk"
    )


def _flush(path: pathlib.Path) -> None:
    """Waits until a file's or folder's contents are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
