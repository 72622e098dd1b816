"""One table, two writings: each cell is in both, and neither can be broken by a name."""

import re

from medcare_jax.evaluation.report.tables import Cell, Row, Table, html_table, markdown_table
from tests.evaluation.report.reading import Reader

EVIL = "<b>a|b\nc</b>"
TABLE = Table(
    ["task", "score", EVIL],
    [
        Row(Cell(EVIL, "12 items"), [Cell("50.0%", "1 to 2"), Cell("+1.0", "p = 0.1", "better")]),
        Row(Cell("ours"), [Cell("1"), Cell("2")], "ours"),
    ],
    "A note.",
)


def test_html_has_every_cell():
    reader = Reader(html_table(TABLE))
    assert reader.open == []
    assert reader.rows == [
        [["task"], ["score"], [EVIL]],
        [[EVIL, "12 items"], ["50.0%", "1 to 2"], ["+1.0", "p = 0.1"]],
        [["ours"], ["1"], ["2"]],
    ]
    assert 'class="number change better"' in html_table(TABLE)
    assert 'tr class="ours"' in html_table(TABLE)


def test_markdown_is_rectangular_and_has_every_cell():
    lines = markdown_table(TABLE).splitlines()
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]}
    assert widths == {4}
    assert lines[2] == "| &lt;b>a\\|b c&lt;/b> (12 items) | 50.0% (1 to 2) | +1.0 (p = 0.1) |"
    assert lines[3] == "| **ours** | **1** | **2** |"
    assert lines[-1] == "A note."


def test_no_rows_are_no_table():
    assert html_table(Table(["a"], [], "note")) == markdown_table(Table(["a"], [], "note")) == ""
