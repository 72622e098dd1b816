import dataclasses
import json

import pytest

from medcare_jax.data.overlap import find_overlap, normalise_question
from medcare_jax.data.records import Record, Turn, open_records

OPTIONS = "\nA. warfarin\nB. aspirin"


def record(place: int, *questions: str) -> Record:
    turns = [turn for text in questions for turn in (Turn("human", text), Turn("gpt", "ok"))]
    return Record(str(place), tuple(turns), None, f"f.json:{place}")


@pytest.mark.parametrize(
    "variant",
    [
        "Which drug thins the blood?" + OPTIONS,
        "which DRUG thins\nthe blood" + OPTIONS,
        "Ｗｈｉｃｈ　ｄｒｕｇ thins the “blood”？" + OPTIONS,
        "Which drug thins the blood?\n(A) heparin\n(B) water\n(C) none",
        "Which drug thins the blood?\nA、肝素\nB、水\n\n请用以下格式回答：答案为{answer}。",
        "Which drug thins the blood?",
    ],
)
def test_a_planted_question_is_found_in_any_dress(variant):
    evaluation = [record(1, "Another question" + OPTIONS), record(2, variant)]
    training = [record(7, "Which drug thins the blood?" + OPTIONS), record(8, "Not this one.")]
    report = find_overlap([training[1:], training], [evaluation])
    assert (report.training_records, report.evaluation_records) == (3, 2)
    assert dataclasses.asdict(report)["overlaps"] == (
        {"evaluation": "f.json:2", "training": ("f.json:7",)},
    )


@pytest.mark.parametrize(
    "other",
    [
        "Which drugs thin the blood?" + OPTIONS,
        "Which drug thins the blood? A. fumigatus does" + OPTIONS,
        "Which drug thins the blood?\nA. fumigatus does.",
    ],
)
def test_another_question_is_not(other):
    training = [record(7, "Which drug thins the blood?" + OPTIONS)]
    assert not find_overlap([training], [[record(1, other)]]).overlaps


def test_a_later_turn_of_training_counts_and_one_of_evaluation_does_not():
    asked, thanks = "Which drug thins the blood?", "Thank you!"
    training = [record(7, "Hello", asked, thanks)]
    assert find_overlap([training], [[record(1, asked)]]).overlaps
    assert not find_overlap([training], [[record(1, "Something else", thanks)]]).overlaps


def test_every_place_is_reported():
    training = [record(7, "Same?"), record(8, "same")]
    evaluation = [record(1, "SAME"), record(2, "same!")]
    overlaps = find_overlap([training], [evaluation[:1], evaluation[1:]]).overlaps
    assert [overlap.evaluation for overlap in overlaps] == ["f.json:1", "f.json:2"]
    assert all(overlap.training == ("f.json:7", "f.json:8") for overlap in overlaps)


def test_questions_of_signs_or_options_alone_stay_apart():
    assert len({normalise_question(text) for text in ("???", "!", "A. x\nB. y", "A. x\nB. z")}) == 4


def test_the_report_holds_no_text():
    report = find_overlap([[record(7, "secret")]], [[record(1, "secret")]])
    assert report.overlaps
    assert "secret" not in json.dumps(dataclasses.asdict(report))


def test_the_public_kit_does_not_leak(shared):
    names = ("1-stage/train.json", "2-stage/train.json")
    training = [open_records(shared / "data" / name) for name in names]
    evaluation = [
        open_records(path)
        for path in sorted((shared / "data/test").glob("*.json"))
        if path.name != "CBLUE_structured.json"  # gold of a task, not records
    ]
    report = find_overlap(training, evaluation)
    assert (report.training_records, report.evaluation_records) == (6940, 2138)
    assert not report.overlaps
    planted = find_overlap([*training, evaluation[3][5:8]], evaluation)
    assert len(planted.overlaps) == 3
