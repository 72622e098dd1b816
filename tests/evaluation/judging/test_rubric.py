"""Marks are read strictly; everything that is to be marked is in the messages."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcare_jax.evaluation.judging.rubric import (
    CRITERIA,
    MarksError,
    judge_messages,
    parse_marks,
)

GOOD = {"fluency": 5, "relevance": 4, "completeness": 3, "proficiency": 1}


@settings(max_examples=30, deadline=None)
@given(st.fixed_dictionaries({name: st.integers(1, 5) for name in CRITERIA}), st.text(), st.text())
def test_marks_are_found_in_any_words(marks, before, after):
    before = before.replace("{", "(")
    after = after.replace("{", "(")
    assert parse_marks(f"{before} {json.dumps(marks)} {after}") == marks


def test_the_last_object_counts_and_more_keys_do_no_harm():
    draft = json.dumps(dict.fromkeys(GOOD, 1))
    final = json.dumps({**GOOD, "comment": {"why": "clear"}})
    assert parse_marks(f"First {draft}, no: ```json\n{final}\n``` {{oops") == GOOD


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "no JSON object"),
        ("5 4 3 4", "no JSON object"),
        ("[" * 100_000, "no JSON object"),
        ('{"a":' * 5_000, "no JSON object"),
        (json.dumps({**GOOD, "fluency": 6}), "out of 1 to 5"),
        (json.dumps({**GOOD, "fluency": 0}), "out of 1 to 5"),
        (json.dumps({**GOOD, "fluency": 4.5}), "no integer"),
        (json.dumps({**GOOD, "fluency": True}), "no integer"),
        (json.dumps({**GOOD, "fluency": "5"}), "no integer"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "fluency"}), "no JSON object"),
    ],
)
def test_what_is_no_set_of_marks_is_refused(reply, reason):
    with pytest.raises(MarksError, match=reason):
        parse_marks(reply)


def test_messages_hold_the_dialogue_the_answer_and_the_reference():
    prompt = [{"role": "user", "content": "咳嗽怎么办?"}]
    system, user = judge_messages(prompt, "多喝水。", "就医。")
    assert all(name in system["content"] for name in CRITERIA)
    for text in ("咳嗽怎么办?", "多喝水。", "就医。"):
        assert text in user["content"]
    assert "reference" not in judge_messages(prompt, "多喝水。")[1]["content"]
