"""Texts that hold an answer, and texts that almost do."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcare_jax.evaluation.answers import (
    Diagnosis,
    option_lines,
    parse_diagnoses,
    parse_entities,
    parse_section,
)

PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="|\n\r"), min_size=1).filter(
    lambda text: (
        text == text.strip() and not set(text) & set("\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
    )
)
CODES = st.from_regex(r"[A-Z][0-9][0-9A-Z](\.[0-9A-Z]{1,4})?", fullmatch=True)


@given(CODES, PLAIN)
def test_a_line_of_code_and_title_is_read_back(code, title):
    assert parse_diagnoses(f" {code} | {title}\n", "code_title") == (Diagnosis(code, title),)


@given(st.lists(st.tuples(CODES, PLAIN), min_size=1, max_size=4), st.sampled_from([None, 2]))
def test_json_is_read_back(pairs, indent):
    text = json.dumps([{"code": c, "title": t} for c, t in pairs], indent=indent)
    assert parse_diagnoses(text, "json") == tuple(Diagnosis(*pair) for pair in pairs)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E11.9",
        "E11.9 Type 2 diabetes",
        "E11.9| Type 2 diabetes",
        "E11.9 |  Type 2 diabetes",
        "e11.9 | Type 2 diabetes",
        "E119 | Type 2 diabetes",
        "E11. | Type 2 diabetes",
        "E11.9 | ",
        "The diagnosis is E11.9 | Type 2 diabetes",
        "E11.9 | Type 2 diabetes\nI10 | Hypertension",
        "E11.9 | Type 2 | diabetes",
        '[{"code": "E11.9", "title": "Type 2 diabetes"}]',
    ],
)
def test_what_only_resembles_a_line_is_refused(text):
    assert parse_diagnoses(text, "code_title") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"code": "I10", "title": "Hypertension"}',
        '[{"code": "I10"}]',
        '[{"code": "I10", "title": ""}]',
        '[{"code": "I10", "title": 7}]',
        '[{"code": "hypertension", "title": "Hypertension"}]',
        '[{"code": "I10", "title": "Hypertension", "sure": true}]',
        '[{"code": "I10", "title": "Hypertension"}, "I10"]',
        '[{"code": "I10", "title": "Hypertension"}',
        'Here it is: [{"code": "I10", "title": "Hypertension"}]',
        "```json\n[]\n```",
        "[" * 100_000,
    ],
)
def test_what_only_resembles_json_is_refused(text):
    assert parse_diagnoses(text, "json") is None


@given(st.text(), st.sampled_from(["code_title", "json"]))
def test_no_text_makes_the_parser_fail(text, form):
    parse_diagnoses(text, form)


def test_options_are_the_last_unbroken_run_of_letters():
    vignette = "Findings:\nA. fever\nB. rash\nWhich virus?\nA. Measles\nB. Rubella\nC. Mumps\nE. no"
    assert option_lines(vignette) == {"A": "Measles", "B": "Rubella", "C": "Mumps"}


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        ("A. one\nB.\nC. three", {"A": "one", "C": "three"}),
        ("A. one\nB. two\nC. \n\nChoose.", {"A": "one", "B": "two"}),
        ("A.\r\nB. two\r\n", {"B": "two"}),
        ("A\n. one", {}),
    ],
)
def test_an_empty_option_takes_nothing_from_the_next_line(lines, options):
    assert option_lines(f"Which?\n{lines}") == options


@pytest.mark.parametrize("mark", [".", "．", "、", ":", "：", ")", "）"])
def test_options_are_read_with_any_usual_mark(mark):
    assert option_lines(f"问题\nA{mark} 甲\nB{mark}乙 ") == {"A": "甲", "B": "乙"}


def test_entities_of_both_languages():
    text = "x\nDisease entity: a;  b\nChemical entity:"
    assert parse_entities(text, ["Disease", "Chemical"], "en") == [
        {"entity": "a", "type": "Disease"},
        {"entity": "b", "type": "Disease"},
    ]
    assert parse_entities("药物实体：甲，乙", ["药物"], "zh")[1] == {"entity": "乙", "type": "药物"}
    assert parse_entities("药物实体: 甲", ["药物"], "zh") is None


def test_a_section_needs_header_and_text():
    assert parse_section("Section header: CC\nSection text:") == {
        "section_header": "CC",
        "section_text": "",
    }
    assert parse_section("Section text: x\nSection header: CC") is None
