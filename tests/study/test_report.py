"""The table says what was done and no more."""

import json

import pytest

from configs import ablation_tiny
from medcare_jax.study.report import write_study
from medcare_jax.study.settings import make_study
from tests.study.results import GEOMETRY, five_seeds


@pytest.fixture
def study():
    return make_study(ablation_tiny.get_config())


def test_the_table_has_means_paired_differences_and_what_they_are_over(tmp_path, study):
    results = five_seeds()
    results[0]["geometry"] = GEOMETRY
    write_study(tmp_path, study, results)
    text = (tmp_path / "study.md").read_text()
    assert text.startswith("5 of 5 seeds, 14 cells")
    assert "over seeds (Student's t)" in text
    row = next(line for line in text.splitlines() if line.startswith("| projection "))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    header = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    found = dict(zip(header, cells, strict=True))
    assert found["seeds"] == "5"
    assert found["knowledge after DA"].startswith("70.0 (")
    assert found["knowledge − none"] == "+25.0 (25.0 to 25.0)"
    assert found["alignment NLL − none"] == "+0.250 (0.250 to 0.250)"
    assert (found["basis width"], found["leak"]) == ("25.0 %", "1.0e-07")
    assert "| span | 25.0 % | 50.0 % | 12.5 % |" in text
    assert "1 seed" in text


def test_one_seed_is_said_to_be_one(tmp_path, study):
    write_study(tmp_path, study, five_seeds()[:2])
    text = (tmp_path / "study.md").read_text()
    assert text.startswith("1 of 5 seeds")
    assert "over items of the one seed (bootstrap), scores only" in text
    assert "inf" not in text


def test_the_same_results_give_the_same_bytes_and_one_page(tmp_path, study):
    for name in ("a", "b"):
        write_study(tmp_path / name, study, five_seeds())
    for name in ("study.md", "study.html", "study.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    page = (tmp_path / "a" / "study.html").read_text()
    assert page.count("<svg") == 1
    assert "http" not in page
    assert len(json.loads((tmp_path / "a" / "study.json").read_text())["results"]) == 10
