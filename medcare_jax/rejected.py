"""Damaged folders are set aside, never removed: somebody may have worked on them."""

import itertools
import pathlib


def set_aside(folder: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    """Moves a folder to a place, or beside what lies there from earlier times.

    Args:
      folder: What is moved.
      place: Where to; its parents are made. If it is taken, `.2`, `.3` and so on are added.

    Returns:
      Where the folder is now.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    names = (place.with_name(f"{place.name}.{number}") for number in itertools.count(2))
    target = next(path for path in itertools.chain([place], names) if not path.exists())
    return folder.rename(target)
