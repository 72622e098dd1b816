"""One answer against its gold: what the rules read in it, and its scores."""

from typing import Any, NamedTuple

from medcare_jax.evaluation.answers import (
    parse_diagnoses,
    parse_entities,
    parse_section,
    read_structure,
)
from medcare_jax.evaluation.items import Item
from medcare_jax.evaluation.scoring import Rules, choice
from medcare_jax.evaluation.scoring import cblue_score as cblue
from medcare_jax.evaluation.scoring.cblue_parse import parse
from medcare_jax.evaluation.scoring.f1 import Counts, micro_f1
from medcare_jax.evaluation.scoring.rouge import Rouge, english_tokens, mean_rouge, rouge
from medcare_jax.evaluation.tasks import TaskSpec


class Grade(NamedTuple):
    """What came of one answer.

    Attributes:
      parsed: what the rules read; None if nothing.
      scores: by metric, of this item alone.
      counts: what the item adds to a score of all items together: right, superfluous, missed
        findings; or summed ROUGE-L and the number of texts. Empty elsewhere.
    """

    parsed: Any
    scores: dict[str, float]
    counts: tuple[float, ...] = ()


def grade(spec: TaskSpec, item: Item, output: str, rules: Rules) -> Grade:
    """The grade of what a model wrote.

    Args:
      spec: the item's task.
      item: what was asked.
      output: the whole answer.
      rules: see the package `scoring`.
    """
    return _GRADERS[spec.family](spec, item, output, rules)


def _exam(spec: TaskSpec, item: Item, output: str, rules: Rules) -> Grade:
    """The letters, all and only."""
    if rules == "reference":
        reading = choice.REFERENCE[spec.rule](output, item.gold)
    else:
        reading = choice.strict(output, item.letters, options="".join(item.options))
    return Grade(reading.letters, {"accuracy": int(reading.is_right)})


def _options(spec: TaskSpec, item: Item, output: str, rules: Rules) -> Grade:
    """The option's text."""
    return Grade(output, {"accuracy": int(output == item.gold)})


def _diagnoses(spec: TaskSpec, item: Item, output: str, rules: Rules) -> Grade:
    """The format, and in it exactly the gold."""
    form: Any = item.choices[0]
    parsed, gold = parse_diagnoses(output, form), parse_diagnoses(item.gold, form)
    scores = {"exact_match": int(parsed == gold), "valid_format": int(parsed is not None)}
    return Grade(parsed and [one._asdict() for one in parsed], dict(scores))


def _findings(spec: TaskSpec, item: Item, output: str, rules: Rules) -> Grade:
    """Entities with their types."""
    parsed = parse_entities(output, item.choices, spec.language)
    return _found(item.gold, parsed)


def _cblue(spec: TaskSpec, item: Item, output: str, rules: Rules) -> Grade:
    """A structure of one of the 16 tasks."""
    family = cblue.TASKS[item.type].family
    parsed = parse(item.type, output, item.choices, rules)
    if family == "findings":
        return _found(item.gold, parsed or None)
    if family == "text":
        rows = cblue.rouge_rows(item.gold, parsed, rules)
        mean = mean_rouge(rows).rouge_l if rows else 0.0
        total = sum(row.rouge_l for row in rows)
        return Grade(parsed or None, {"rougeL": mean}, (total, len(rows)))
    said = cblue.said_label(item.type, parsed, rules)
    is_known = said in (*item.choices, item.gold)
    return Grade(said if is_known or rules == "reference" else None, _right(said == item.gold))


def _label(spec: TaskSpec, item: Item, output: str, rules: Rules) -> Grade:
    """One of the choices and nothing else."""
    said = output.strip()
    return Grade(said if said in item.choices else None, _right(said == item.gold))


def _section(spec: TaskSpec, item: Item, output: str, rules: Rules) -> Grade:
    """The header, and the text of the section."""
    parsed = parse_section(output)
    header = parsed["section_header"] if parsed else ""
    text = parsed["section_text"] if parsed else ""
    scored = rouge(english_tokens(text), english_tokens(item.gold["section_text"]), "strict")
    accuracy = int(header == item.gold["section_header"])
    return Grade(parsed, {**scored._asdict(), "header_accuracy": accuracy})


def _summary(spec: TaskSpec, item: Item, output: str, rules: Rules) -> Grade:
    """A text."""
    scored: Rouge = rouge(english_tokens(output), english_tokens(item.gold), "strict")
    return Grade(output.strip() or None, dict(scored._asdict()))


def _text(spec: TaskSpec, item: Item, output: str, rules: Rules) -> Grade:
    """Just the gold; if that is an object or list of JSON, any way of writing it."""
    said, gold = output.strip(), item.gold.strip()
    wanted = read_structure(gold)
    if wanted is None:
        return Grade(said or None, {"exact_match": int(said == gold)})
    found = read_structure(said)
    scores = {"exact_match": int(_is_same(found, wanted)), "valid_format": int(found is not None)}
    return Grade(found, dict(scores))


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are equal; for Python `true` is 1 as well."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _open(spec: TaskSpec, item: Item, output: str, rules: Rules) -> Grade:
    """A judge marks it later."""
    return Grade(output.strip() or None, {})


_GRADERS = {
    "exam": _exam,
    "options": _options,
    "diagnoses": _diagnoses,
    "findings": _findings,
    "cblue": _cblue,
    "label": _label,
    "section": _section,
    "summary": _summary,
    "text": _text,
    "open": _open,
}


def _found(gold: Any, parsed: Any) -> Grade:
    """Findings against gold; F1 of the item alone is 1 if nothing was to be found, nor was."""
    counts: Counts = cblue.count_findings(gold, parsed or [])
    alone = 1.0 if not any(counts) else micro_f1([counts]).f1
    return Grade(parsed, {"f1": alone}, counts)


def _right(is_right: bool) -> dict[str, float]:
    """Accuracy of one item."""
    return {"accuracy": int(is_right)}
