"""Tables as plain cells, written as HTML or as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from medcare_jax.evaluation.report.elements import text


class Cell(NamedTuple):
    """A number or name, and what stands small beneath it.

    Attributes:
      text: What is read first.
      note: An interval, a p-value, a count; empty for none.
      kind: `better`, `worse` or `unclear` colours a difference; empty for none.
    """

    text: str
    note: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """A name and its cells.

    Attributes:
      name: Of the row.
      cells: One per further column.
      kind: `main` is bold among lesser rows; `ours` is set off from what is quoted or summed up.
    """

    name: Cell
    cells: Sequence[Cell]
    kind: Literal["", "main", "ours"] = ""


@dataclass(frozen=True)
class Table:
    """Rows under column titles, the first of which is over the names."""

    columns: Sequence[str]
    rows: Sequence[Row]
    note: str = ""


def html_table(table: Table) -> str:
    """A table that scrolls sideways where the window is narrow; nothing without rows."""
    if not table.rows:
        return ""
    name, *rest = table.columns
    head = f'<th scope="col">{text(name)}</th>' + "".join(
        f'<th scope="col" class="number">{text(column)}</th>' for column in rest
    )
    body = "".join(
        f'<tr class="{row.kind}">'
        f'<th scope="row">{_content(row.name)}</th>'
        f"{''.join(_html_cell(cell) for cell in row.cells)}</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{text(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(name)} table">'
        f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"{note}"
    )


def markdown_table(table: Table) -> str:
    """A Markdown table with its note; nothing without rows."""
    if not table.rows:
        return ""
    body = [
        [_bold(row.name, bool(row.kind)), *(_bold(cell, bool(row.kind)) for cell in row.cells)]
        for row in table.rows
    ]
    lines = [[escape(column) for column in table.columns], ["---"] * len(table.columns), *body]
    grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{grid}\n\n{escape(table.note)}" if table.note else grid


def escape(content: str) -> str:
    """Text that no Markdown table or HTML reader takes for markup."""
    plain = content.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return plain.replace("\n", " ")


def code(content: str) -> str:
    """Text in monospace."""
    return f"`{content.replace('`', chr(39)).replace('|', chr(92) + '|')}`".replace("\n", " ")


def _html_cell(cell: Cell) -> str:
    """A number, right-aligned."""
    kind = f" change {cell.kind}" if cell.kind else ""
    return f'<td class="number{kind}">{_content(cell)}</td>'


def _content(cell: Cell) -> str:
    """A cell's text over its note."""
    note = f"<small>{text(cell.note)}</small>" if cell.note else ""
    return f"<strong>{text(cell.text)}</strong>{note}"


def _bold(cell: Cell, is_bold: bool) -> str:
    """A cell on one line."""
    content = f"**{escape(cell.text)}**" if is_bold else escape(cell.text)
    return f"{content} ({escape(cell.note)})" if cell.note else content
