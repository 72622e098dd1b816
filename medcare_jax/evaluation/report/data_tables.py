"""What became of each training file, as one table; the rest of the data report as facts."""

import pathlib
from collections.abc import Mapping
from typing import Any

from medcare_jax.evaluation.report.content import as_text, flat_items
from medcare_jax.evaluation.report.tables import Cell, Row, Table

# Keys of a file's report under the titles that a reader sees; the others stay in data_report.json.
_COLUMNS = {
    "records": "records",
    "bad_records": "bad, skipped",
    "over_long": "longer than a row",
    "without_target": "without a target",
    "kept": "kept",
    "tokens": "tokens",
    "target_tokens": "target tokens",
    "weight": "times per epoch",
}


def file_table(data: Mapping[str, Any]) -> Table:
    """One row per stage and file; no rows where no stage lists files.

    Args:
      data: The data report: by stage a mapping whose `files` are mappings with a `path`.

    Examples:
      >>> table = file_table({"mka": {"files": [{"path": "d/a.json", "records": 12, "kept": 11}]}})
      >>> table.columns, table.rows[0].name.text, [cell.text for cell in table.rows[0].cells]
      (['file', 'records', 'kept'], 'a.json', ['12', '11'])
    """
    files = [(stage, file) for stage in data for file in _files(data[stage])]
    names = [name for name in _COLUMNS if any(name in file for _, file in files)]
    rows = [
        Row(
            Cell(pathlib.PurePath(file["path"]).name, stage.upper()),
            [Cell(as_text(file.get(name))) for name in names],
        )
        for stage, file in files
    ]
    return Table(["file", *(_COLUMNS[name] for name in names)], rows)


def other_facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the data report says beside the table: dotted names and texts."""
    rest = {}
    for name, value in data.items():
        files = _files(value)
        rest[name] = value if not files else {k: v for k, v in value.items() if k != "files"}
        if digests := {file["path"]: file["sha256"] for file in files if "sha256" in file}:
            rest[name]["sha256"] = digests
        if problems := [line for file in files for line in file.get("problems", ())]:
            rest[name]["problems"] = problems
    return flat_items(rest)


def _files(stage: Any) -> list[Mapping[str, Any]]:
    """The reports of a stage's files; none in a part of the report that is no stage."""
    return list(stage.get("files", ())) if isinstance(stage, Mapping) else []
