"""Folders that appear whole or not at all."""

import contextlib
import fcntl
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
    killed process left is cleared by the next one, and what one at work has is left alone.

    Args:
      target: The folder to make; its parents are made too.

    Yields:
      The sibling to write into.

    Raises:
      ConversionError: The target exists already, another process is writing it, the sibling's
        name is that of a link or a file, or its disk filled up; names the disk.
    """
    target = pathlib.Path(target).absolute()
    _check_free(target)
    partial = target.parent / f".{target.name}.partial"
    _make(partial)
    with _alone(partial, target):
        try:
            _empty(partial)
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


def _make(partial: pathlib.Path) -> None:
    """Makes the sibling unless it is there; of a link, what it points to would be emptied."""
    with contextlib.suppress(FileExistsError):
        partial.mkdir(parents=True)
    if partial.is_symlink() or not partial.is_dir():
        raise ConversionError(
            f"{partial} is a link or a file, expected nothing or a folder; remove it, or name "
            "another target"
        )


@contextlib.contextmanager
def _alone(partial: pathlib.Path, target: pathlib.Path) -> Iterator[None]:
    """Holds the system's lock of the folder that is to become the target."""
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not _lock(descriptor, partial):
            _check_free(target)
            raise ConversionError(
                f"{target} is being written by another process; wait for it or name another target"
            )
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, partial: pathlib.Path) -> bool:
    """Whether the folder could be locked, and still has the name under which it was opened."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), partial.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _check_free(target: pathlib.Path) -> None:
    """Raises if the target is there; a link to nothing is."""
    if target.exists() or target.is_symlink():
        raise ConversionError(f"{target} exists; name another target or remove it first")


def _empty(folder: pathlib.Path) -> None:
    """Removes what is in a folder, which itself stays, and the lock on it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


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
