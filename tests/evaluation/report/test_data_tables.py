"""Training files in one table: a row each, the columns that any of them has."""

from medcare_jax.evaluation.report.data_tables import file_table, other_facts

DATA = {
    "mka": {
        "files": (
            {"path": "x/a.json", "sha256": "aa", "records": 20_000, "kept": 19_998, "problems": ()},
            {"path": "x/b.json", "sha256": "bb", "records": 7, "problems": ("x/b.json:3: id",)},
        ),
        "epochs": 2,
    },
    "da": {"files": [{"path": "y/a.json", "sha256": "cc", "kept": 5}], "epochs": 1},
    "overlap": {"overlaps": []},
    "seed": 4,
}


def test_every_file_of_every_stage_has_a_row():
    table = file_table(DATA)
    assert table.columns == ["file", "records", "kept"]
    rows = [(*row.name[:2], *(cell.text for cell in row.cells)) for row in table.rows]
    assert rows == [
        ("a.json", "MKA", "20,000", "19,998"),
        ("b.json", "MKA", "7", "–"),
        ("a.json", "DA", "–", "5"),
    ]


def test_without_files_there_is_no_row():
    assert not file_table({"overlap": None, "seed": 3}).rows


def test_digests_problems_and_the_rest_stay_facts():
    assert other_facts(DATA) == [
        ("mka.epochs", "2"),
        ("mka.sha256.x/a.json", "aa"),
        ("mka.sha256.x/b.json", "bb"),
        ("mka.problems", "x/b.json:3: id"),
        ("da.epochs", "1"),
        ("da.sha256.y/a.json", "cc"),
        ("overlap.overlaps", "–"),
        ("seed", "4"),
    ]
