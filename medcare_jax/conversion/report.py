"""`conversion_report.json`: what an export was made of, how close it came, and its files."""

import pathlib
from collections.abc import Mapping
from typing import Any

from medcare_jax.conversion.metadata import read_object, write_object
from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.files import file_digest

REPORT_NAME = "conversion_report.json"


def write_report(
    folder: pathlib.Path, content: Mapping[str, Any], written: Mapping[str, str]
) -> None:
    """Writes the report of a folder that is otherwise complete, with a sha256 per file.

    Args:
      folder: All files but the report are there.
      content: What the report says besides.
      written: The sha256 of what was written, by file, where it is known; those files are not
        read again.
    """
    files = _digests(folder, known=written)
    write_object(folder / REPORT_NAME, {**content, "files": files})


def verify(folder: pathlib.Path) -> dict[str, Any]:
    """Checks a folder against its report.

    Returns:
      The report.

    Raises:
      FileNotFoundError: There is no report.
      ConversionError: Files that differ, are missing or were added; all are listed.
    """
    report = read_object(folder / REPORT_NAME)
    expected, found = report.get("files"), _digests(folder)
    if not isinstance(expected, dict):
        raise ConversionError(f"{folder / REPORT_NAME} lists no files; it is not a report of ours")
    changed = {name: "!" for name in expected if name in found and found[name] != expected[name]}
    lines = (
        changed
        | dict.fromkeys(expected.keys() - found.keys(), "-")
        | dict.fromkeys(found.keys() - expected.keys(), "+")
    )
    if lines:
        listed = "\n".join(f"  {mark} {name}" for name, mark in sorted(lines.items())[:30])
        more = f"\n  ... and {len(lines) - 30} more" if len(lines) > 30 else ""
        raise ConversionError(
            f"{folder} is not what {REPORT_NAME} says: {len(lines)} of {len(expected)} files "
            f"differ: changed (!), missing (-), added (+)\n{listed}{more}"
        )
    return report


def _digests(folder: pathlib.Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """The sha256 of every file but the report, by relative path; those known are not computed."""
    known = known or {}
    names = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {REPORT_NAME}
    return {name: known.get(name) or file_digest(folder / name) for name in sorted(names)}
