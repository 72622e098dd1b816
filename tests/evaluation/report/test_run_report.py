"""The files of a report, and what they look like in a browser."""

import dataclasses
import re

import pytest

from medcare_jax.evaluation.report.comparison import compare, findings
from medcare_jax.evaluation.report.run_page import html_page
from medcare_jax.evaluation.report.run_report import markdown, write_report
from tests.evaluation.report.chromium import run_chromium


def test_both_files_are_written_whole(report, tmp_path):
    (tmp_path / "report.md").write_text("old")
    paths = write_report(tmp_path, report)
    assert [path.name for path in paths] == ["report.md", "report.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    assert paths[0].read_text(encoding="utf-8") == markdown(report)
    assert paths[1].read_text(encoding="utf-8") == html_page(report)


def test_the_same_run_makes_the_same_bytes(report):
    assert markdown(report) == markdown(report)
    assert html_page(report) == html_page(report)


def test_markdown_has_every_finding_and_number(report):
    text = markdown(report)
    for _, sentence in findings(compare(report.scores)):
        assert sentence.replace("<", "&lt;") in text
    assert "| unseen | accuracy | 50 | 26.0% (" in text
    assert "| file | kept |" in text
    assert "| a\\|b.json (MKA) | 12,345 |" in text
    assert "| seed | `7` |" in text
    assert "# A &lt;small> run &amp; more" in text


def judged(results, mark):
    """Results whose task `unseen` a judge has marked, all items alike."""
    task = results["tasks"]["unseen"]
    types = {"one": {"score": mark, "items": 25}, "two": {"score": mark, "items": 25}}
    marks = {
        "score": mark, "low": mark, "high": mark, "types": types, "outcomes": [mark] * 50,
        "items": "all",
    }  # fmt: skip
    scores = {**task["protocols"]["generate"]["scores"], "judge": marks}
    protocols = {"generate": {"unreadable": 0.0, "scores": scores}}
    left_out = {**task["left_out"], "not marked by the judge": 2}
    task = {**task, "metric": "judge", "left_out": left_out, "protocols": protocols}
    return {**results, "tasks": {**results["tasks"], "unseen": task}}


def test_marks_stand_on_their_own_scale(report):
    marks = {"base": 3.25, "mka": 4.0, "da": 4.0}
    scores = {stage: judged(report.scores[stage], mark) for stage, mark in marks.items()}
    told = dataclasses.replace(report, scores=scores)
    assert "| unseen | judge | 50 | 3.25 (3.25 to 3.25) | 4.00 (4.00 to 4.00)" in markdown(told)
    assert "| +0.75 (p < 0.001)" in markdown(told)
    assert "unseen (3.25 → 4.00, p &lt; 0.001)" in markdown(told)
    page = html_page(told)
    assert "325.0%" not in page
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="4.5"', page)]
    assert max(places) < 826


def test_what_one_stage_alone_was_marked_for_is_left_out(report):
    """Whichever stage it is, its other scores stay."""
    for stage in report.scores:
        scores = {**report.scores, stage: judged(report.scores[stage], 3.25)}
        told = dataclasses.replace(report, scores=scores)
        assert "judge" not in markdown(told)
        assert "3.25" not in html_page(told)
        assert "| unseen | accuracy | 50 | 26.0% (" in markdown(told)
        assert "not marked by the judge" not in html_page(told)


def test_marks_of_other_items_are_not_paired(report):
    scores = {stage: judged(results, 4.0) for stage, results in report.scores.items()}
    marks = scores["da"]["tasks"]["unseen"]["protocols"]["generate"]["scores"]["judge"]
    marks |= {"outcomes": [5.0] * 49, "items": "but one"}
    told = markdown(dataclasses.replace(report, scores=scores))
    assert "| ±0.00 (p = 1.000) | ±0.00 (not paired) |" in told


def test_markdown_tables_are_rectangular(report):
    for table in re.findall(r"(?:^\|.*\|\n?)+", markdown(report), flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}
        assert len(widths) == 1


def test_a_report_without_scores_says_so(report):
    text = markdown(dataclasses.replace(report, scores={}))
    assert "nothing to compare" in text
    assert "## Scores" not in text


@pytest.mark.parametrize("width", [1200, 480])
def test_a_browser_shows_the_page(report, tmp_path, width):
    """Both schemes are drawn, and nothing but the folded table is wider than the window."""
    images = pytest.importorskip("PIL.Image")
    write_report(tmp_path, report)
    shown = {}
    for scheme in ("light", "dark"):
        picture = tmp_path / f"{scheme}.png"
        run_chromium(
            tmp_path / scheme,
            f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
            f"--window-size={width},2400",
            f"--screenshot={picture}",
            (tmp_path / "report.html").as_uri(),
        )
        with images.open(picture) as image:
            shown[scheme] = image.convert("RGB")
            shown[scheme].load()
    corners = {scheme: image.getpixel((2, 2)) for scheme, image in shown.items()}
    assert corners == {"light": (0xF6, 0xF7, 0xF9), "dark": (0x11, 0x16, 0x1D)}
    for scheme, image in shown.items():
        assert image.getcolors(100) is None, "more than an empty page"
        right_edge = {image.getpixel((image.width - 1, y)) for y in range(0, image.height, 7)}
        assert right_edge == {corners[scheme]}, "no card runs over the edge"
