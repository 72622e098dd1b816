"""Text to structure: options of a question; diagnoses, entities, sections that a model wrote."""

import json
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Format = Literal["code_title", "json"]
FORMATS: dict[Format, str] = {
    "code_title": "one line `CODE | title`",
    "json": 'a list of {"code", "title"}',
}

# Latin and Chinese punctuation behind the letter, as exams print it.
_OPTION_LINE = re.compile(r"^([A-Z])[^\S\n]*[.．、:：)）][^\S\n]*(.*?)[^\S\n]*$", re.MULTILINE)
_CODE = r"[A-Z][0-9][0-9A-Z](?:\.[0-9A-Z]{1,4})?"
_SECTION = re.compile(
    r"^Section header:(?P<section_header>[^\n]*)\nSection text:(?P<section_text>.*)",
    re.MULTILINE | re.DOTALL,
)
_CODE_TITLE = re.compile(rf"({_CODE}) \| (\S[^\n|]*)")


class Diagnosis(NamedTuple):
    """An ICD-10-CM code and its title."""

    code: str
    title: str


def option_lines(prompt: str) -> dict[str, str]:
    r"""The options that a question lists as lines `A. text`, by letter.

    Only an unbroken run A, B, C, ... counts, and of several runs the last: a vignette may have
    lettered lines of its own. A letter without a text is no option, as where four of five slots
    are filled.

    Examples:
      >>> option_lines("Which vitamin?\nA. Retinol\nB. Thiamine")
      {'A': 'Retinol', 'B': 'Thiamine'}
      >>> option_lines("No options here.")
      {}
    """
    run: dict[str, str] = {}
    for letter, text in _OPTION_LINE.findall(prompt):
        if letter == "A":
            run = {}
        if letter == chr(ord("A") + len(run)):
            run[letter] = text
    return {letter: text for letter, text in run.items() if text}


def parse_diagnoses(text: str, form: Format) -> tuple[Diagnosis, ...] | None:
    """The diagnoses in a text of a strict format, or None if it breaks the format.

    Blanks around the whole are allowed; anything else that the format does not ask for is not:
    what a program must read has to be right to the letter.

    Args:
      text: what a model wrote.
      form: `code_title`, one line "code | title"; or `json`, a list of objects with exactly
        "code" and "title".

    Examples:
      >>> parse_diagnoses("E11.9 | Type 2 diabetes", "code_title")
      (Diagnosis(code='E11.9', title='Type 2 diabetes'),)
      >>> parse_diagnoses("The code is E11.9.", "code_title") is None
      True
      >>> parse_diagnoses('[{"code": "I10", "title": "Hypertension"}]', "json")
      (Diagnosis(code='I10', title='Hypertension'),)
    """
    if form == "code_title":
        match = _CODE_TITLE.fullmatch(text.strip())
        return (Diagnosis(*match.groups()),) if match else None
    value = read_structure(text)
    if not isinstance(value, list) or not value or not all(map(_is_diagnosis, value)):
        return None
    return tuple(Diagnosis(entry["code"], entry["title"]) for entry in value)


def _is_diagnosis(entry: object) -> bool:
    """Whether a JSON value is an object with a code, a title and nothing else."""
    return (
        isinstance(entry, dict)
        and entry.keys() == {"code", "title"}
        and all(isinstance(value, str) and value.strip() for value in entry.values())
        and re.fullmatch(_CODE, entry["code"]) is not None
    )


def read_structure(text: str) -> dict[str, Any] | list[Any] | None:
    """The object or list of a JSON text, or None if it is none.

    Examples:
      >>> read_structure('{"level": 2}'), read_structure("2"), read_structure("level 2")
      ({'level': 2}, None, None)
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def parse_entities(text: str, types: Sequence[str], language: str) -> list[dict[str, str]] | None:
    r"""Entities from lines `Disease entity: a; b` or `疾病实体：甲，乙`; None without such a line.

    Examples:
      >>> parse_entities("They are:\nDisease entity: flu; cold", ["Disease"], "en")
      [{'entity': 'flu', 'type': 'Disease'}, {'entity': 'cold', 'type': 'Disease'}]
      >>> parse_entities("疾病实体：", ["疾病"], "zh")
      []
      >>> parse_entities("None.", ["Disease"], "en") is None
      True
    """
    word, colon, comma = (" entity", ":", ";") if language == "en" else ("实体", "：", "，")
    found: list[dict[str, str]] = []
    is_said = False
    for kind in types:
        for line in text.split("\n"):
            if line.startswith(f"{kind}{word}{colon}"):
                is_said = True
                mentions = line.removeprefix(f"{kind}{word}{colon}").split(comma)
                found += [{"entity": m.strip(), "type": kind} for m in mentions if m.strip()]
    return found if is_said else None


def parse_section(text: str) -> dict[str, str] | None:
    r"""Header and text of a note's section, or None if one of them is not announced.

    Examples:
      >>> parse_section("Section header: CC\nSection text: Cough.\nFever.")
      {'section_header': 'CC', 'section_text': 'Cough.\nFever.'}
    """
    match = _SECTION.search(text)
    return {name: value.strip() for name, value in match.groupdict().items()} if match else None
