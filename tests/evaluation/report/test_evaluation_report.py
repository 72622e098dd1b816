"""The two files of a report, from the two files of an evaluation."""

import json
import pathlib
import stat

import pytest

from medcare_jax.evaluation.report import evaluation_report
from medcare_jax.evaluation.report.evaluation_report import (
    markdown,
    page,
    write_evaluation_report,
)
from medcare_jax.evaluation.results import write_results
from tests.evaluation.report.evaluations import results_of, task_result
from tests.evaluation.report.reading import read_page
from tests.evaluation.report.test_answers_browser import sample

RESULTS = results_of(
    {
        "medqa": task_result("MedQA", right=13, left_out=2),
        "cmexam": task_result("CMExam", right=17),
        "meqsum": task_result("MeQSum", "rouge_l", protocols=("generate",), language="en"),
    }
)


def test_both_files_are_written_with_the_answers(tmp_path):
    write_results(tmp_path, RESULTS)
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample(7)) + "\n")
    paths = write_evaluation_report(tmp_path)
    assert [path.name for path in paths] == ["report.md", "report.html"]
    assert "Question 7?" in paths[1].read_text()
    assert stat.S_IMODE(paths[1].stat().st_mode) == 0o600
    assert "Question 7?" not in paths[0].read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.html", "report.md", "results.json", "samples.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize("most", [2, 3])
def test_a_page_says_if_it_has_not_all_answers(tmp_path, monkeypatch, most):
    monkeypatch.setattr(evaluation_report, "MOST_SAMPLES", most)
    write_results(tmp_path, RESULTS)
    lines = (json.dumps(sample(number)) + "\n" for number in range(3))
    (tmp_path / "samples.jsonl").write_text("".join(lines))
    text = write_evaluation_report(tmp_path)[1].read_text()
    assert ("Question 2?" in text) == (most == 3)
    said = "Only the first 2 answers are here, in the order of the tasks; all stand in samples."
    assert (said in text) == (most == 2)


def test_a_page_with_answers_is_private_from_its_first_byte(tmp_path, monkeypatch):
    write_results(tmp_path, RESULTS)
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample(7)) + "\n")
    modes, replace = {}, pathlib.Path.replace

    def look(draft, target):
        modes[target.name] = stat.S_IMODE(draft.stat().st_mode) & 0o077
        return replace(draft, target)

    monkeypatch.setattr(pathlib.Path, "replace", look)
    write_evaluation_report(tmp_path)
    assert modes["report.html"] == 0
    assert modes["report.md"] != 0


def test_without_samples_nothing_is_run(tmp_path):
    write_results(tmp_path, RESULTS)
    text = write_evaluation_report(tmp_path)[1].read_text()
    assert "<script" not in text
    assert "script-src 'none'" in text


def test_without_results_there_is_no_report(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results\.json"):
        write_evaluation_report(tmp_path)


def test_every_number_is_in_both():
    rows = [tuple(part for cell in row for part in cell) for row in read_page(page(RESULTS)).rows]
    text = markdown(RESULTS)
    assert ("MedQA", "40 items", "32.5%") == next(r for r in rows if r[1:2] == ("40 items",) and
                                                  r[0] == "MedQA")[:3]  # fmt: skip
    assert "32.5% (20.1 to 48.0; 12.5% unreadable)" in text
    assert "Left out: MedQA: 2 too long." in text
    assert "- seed: `0`" in text
    assert ["digest", "ab" * 32] in read_page(page(RESULTS)).terms


def test_partial_results_are_marked():
    partial = {**RESULTS, "status": "partial"}
    assert 'role="alert"' in page(partial)
    assert 'role="alert"' not in page(RESULTS)
    assert "Partial:" in markdown(partial)
    assert "Partial:" not in markdown(RESULTS)


def test_names_cannot_become_markup():
    evil = '"><script>alert(1)</script>'
    results = results_of({"x": task_result(evil, evil, types=(evil, "b"))}, name=evil)
    results["settings"][evil] = evil
    assert "<script" not in page(results)
    read_page(page(results))
    assert "<script" not in markdown(results).replace(f"`{evil}`", "")


def test_no_task_at_all_is_a_page_still():
    read_page(page(results_of({})))
    assert markdown(results_of({})).startswith("# Evaluation")
