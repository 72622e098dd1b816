"""What a record of a test file asks for, and its gold, by family of task.

| family | asks for | gold |
|---|---|---|
| exam | letters of the options that the prompt lists | letters |
| options | the text of one of the options of `eval.options` | text |
| diagnoses | ICD-10-CM codes in a strict format | text in that format |
| findings | entities, one line per type | list of `{"entity", "type"}` |
| cblue | one of PromptCBLUE's 16 tasks | structure, see `scoring/cblue_parse.py` |
| label | one of the choices | the choice |
| section | header and text of a section of a note | `{"section_header", "section_text"}` |
| summary | a short text | text |
| text | just this text, or just this JSON | text |
| open | an answer that a judge marks | text |
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from medcare_jax.data.records import Record, RecordError, Turn
from medcare_jax.evaluation.answers import FORMATS, option_lines, parse_diagnoses
from medcare_jax.evaluation.scoring.cblue_parse import PARSERS, parse

Family = Literal[
    "exam",
    "options",
    "diagnoses",
    "findings",
    "cblue",
    "label",
    "section",
    "summary",
    "text",
    "open",
]


LETTERS = re.compile(r"[A-Z][A-Z,，、;；\s]*")
"""The gold of an exam."""

MAX_TYPE = 100
"""Most characters of a type, which is a key of the results; a longer text is no name."""


class Item(NamedTuple):
    """One request.

    Attributes:
      id: `eval.sample_id`, else the record's id.
      type: subject or sort of request; of CBLUE, the task; empty if the file gives none.
      turns: the prompt, ending with a human turn.
      gold: the right answer, as the table above says.
      options: of exams by letter, of options by text: the text of each.
      choices: the labels, types of entities or format that the answer is to have.
      facts: of open answers, what a judge is shown beside the prompt.
    """

    id: str
    type: str
    turns: tuple[Turn, ...]
    gold: Any
    options: Mapping[str, str] = {}
    choices: tuple[str, ...] = ()
    facts: Mapping[str, str] = {}

    @property
    def letters(self) -> str:
        """The gold of an exam without what stands between its letters."""
        return re.sub("[^A-Z]", "", "".join(self.gold))  # a list of letters in others' files


def read_item(record: Record, family: Family) -> Item:
    """The item of a record.

    Raises:
      RecordError: its gold is missing or is not what the family asks for, or its id or type is no
        short text.
    """
    if record.evaluation is None:
        problem = 'expected an object with the gold, such as {"answer": ...}; got none'
        raise RecordError(record.location, "eval", problem)
    if record.turns[-1].role != "gpt" or record.turns[-2].role != "human":
        raise RecordError(record.location, "conversations", "expected a prompt, then its gold")
    facts = record.evaluation
    key = "task_dataset" if family == "cblue" else "type"
    kind = read_type(facts.get(key), record.location, f"eval.{key}")
    name = read_id(facts.get("sample_id"), record.id, record.location, "eval.sample_id")
    item = Item(name, kind, record.turns[:-1], gold=None)
    return READERS[family](record, facts, item)


def read_id(value: Any, default: str, location: str, field: str) -> str:
    """An id as text: text as it is, whole numbers as digits, and the default in place of none.

    Raises:
      RecordError: anything else, such as a list; with location and field.
    """
    if value is None:
        return default
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)
    raise RecordError(location, field, "expected text or a whole number")


def read_type(value: Any, location: str, field: str) -> str:
    """A type as it is, and empty text in place of none.

    Raises:
      RecordError: anything else than a short text on one line; with location and field.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        came = type(value).__name__
    elif len(value) > MAX_TYPE or len(value.splitlines()) > 1:
        came = f"{len(value)} on {len(value.splitlines())} lines"
    else:
        return value
    problem = f"expected text of at most {MAX_TYPE} characters on one line, got {came}"
    raise RecordError(location, field, problem)


def _exam(record: Record, facts: Mapping[str, Any], item: Item) -> Item:
    """Letters among the option lines of the prompt."""
    options = option_lines(record.turns[-2].text)
    for name in ("answer_idx", "answer"):
        gold = facts.get(name)
        if not isinstance(gold, str) or not LETTERS.fullmatch(gold):
            continue
        if set(re.sub("[^A-Z]", "", gold)) <= set(options):
            return item._replace(gold=gold, options=options)
    problem = f"expected letters among {', '.join(options) or 'lines A. ... of the prompt'}"
    raise RecordError(record.location, "eval.answer", problem)


def _options(record: Record, facts: Mapping[str, Any], item: Item) -> Item:
    """One of given texts."""
    options = facts.get("options")
    if (
        not isinstance(options, list)
        or not all(isinstance(option, str) and option for option in options)
        or len(set(options)) != len(options)
        or facts.get("answer") not in options
    ):
        problem = "expected different texts, one of them the answer"
        raise RecordError(record.location, "eval.options", problem)
    return item._replace(gold=facts["answer"], options={text: text for text in options})


def _diagnoses(record: Record, facts: Mapping[str, Any], item: Item) -> Item:
    """A text in a format."""
    gold = _text(record, facts, "answer")
    for form in FORMATS:
        if facts.get("format") == form:
            if parse_diagnoses(gold, form) is None:
                problem = f"expected the demo's format {form}: {FORMATS[form]}"
                raise RecordError(record.location, "eval.answer", problem)
            return item._replace(gold=gold, choices=(form,))
    raise RecordError(record.location, "eval.format", f"expected one of {', '.join(FORMATS)}")


def _findings(record: Record, facts: Mapping[str, Any], item: Item) -> Item:
    """A list of entities."""
    gold = facts.get("answer")
    if not isinstance(gold, list) or not all(
        isinstance(one, dict) and one.keys() == {"entity", "type"} for one in gold
    ):
        problem = 'expected a list of {"entity", "type"}'
        raise RecordError(record.location, "eval.answer", problem)
    return item._replace(gold=gold, choices=_choices(record, facts))


def _cblue(record: Record, facts: Mapping[str, Any], item: Item) -> Item:
    """A task of PromptCBLUE; the gold text is read by the rules that read answers."""
    task = facts.get("task_dataset")
    if not isinstance(task, str) or task not in PARSERS:
        problem = f"expected one of {', '.join(PARSERS)}"
        raise RecordError(record.location, "eval.task_dataset", problem)
    choices = () if facts.get("answer_choices") is None else _choices(record, facts)
    gold = parse(task, record.turns[-1].text, choices, "reference")
    return item._replace(gold=gold, choices=choices)


def _label(record: Record, facts: Mapping[str, Any], item: Item) -> Item:
    """One of the choices."""
    choices = _choices(record, facts)
    if facts.get("answer") not in choices:
        raise RecordError(record.location, "eval.answer", "expected one of eval.answer_choices")
    return item._replace(gold=facts["answer"], choices=choices)


def _section(record: Record, facts: Mapping[str, Any], item: Item) -> Item:
    """A header and a text."""
    gold = facts.get("answer")
    if not isinstance(gold, dict) or not all(
        isinstance(gold.get(name), str) for name in ("section_header", "section_text")
    ):
        problem = "expected an object with section_header and section_text"
        raise RecordError(record.location, "eval.answer", problem)
    return item._replace(gold=gold, choices=_choices(record, facts))


def _summary(record: Record, facts: Mapping[str, Any], item: Item) -> Item:
    """A text."""
    return item._replace(gold=_text(record, facts, "answer"))


def _open(record: Record, facts: Mapping[str, Any], item: Item) -> Item:
    """A text that a judge compares with."""
    names = ("description", "question", "solution")
    given = {name: str(facts[name]) for name in names if facts.get(name)}
    gold = given.get("solution", record.turns[-1].text)
    return item._replace(gold=gold, facts=given)


READERS: dict[Family, Callable[[Record, Mapping[str, Any], Item], Item]] = {
    "exam": _exam,
    "options": _options,
    "diagnoses": _diagnoses,
    "findings": _findings,
    "cblue": _cblue,
    "label": _label,
    "section": _section,
    "summary": _summary,
    "text": _summary,
    "open": _open,
}
"""By family, from a record, its gold and an item without any to the item with it."""


def _text(record: Record, facts: Mapping[str, Any], name: str) -> str:
    """A text of the gold."""
    value = facts.get(name)
    if not isinstance(value, str) or not value:
        raise RecordError(record.location, f"eval.{name}", "expected a text, the gold; got none")
    return value


def _choices(record: Record, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The answer choices."""
    choices = facts.get("answer_choices")
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        raise RecordError(record.location, "eval.answer_choices", "expected a list of texts")
    return tuple(choices)
