"""CBLUE's structured gold: `{task: [{"sample_id", "answer"}]}` in a file of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medcare_jax.evaluation.items import Item
from medcare_jax.evaluation.scoring.cblue_parse import parse
from medcare_jax.evaluation.scoring.cblue_score import PredictionError, check_order
from medcare_jax.files import read_json

STRUCTURED_FILE = "CBLUE_structured.json"


def read_structured(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The entries by task.

    Raises:
      PredictionError: the file does not have that layout.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(entries, list)
        and all(isinstance(one, dict) and {"sample_id", "answer"} <= one.keys() for one in entries)
        for entries in content.values()
    ):
        problem = 'expected {task: [{"sample_id", "answer"}, ...]}, got another layout'
        raise PredictionError(f"{path}: {problem}")
    return content


def is_structure(task: str, gold: Any) -> bool:
    """Whether a gold has the layout that answers to one of the 16 tasks are read into.

    Examples:
      >>> is_structure("CMeEE-V2", [{"entity": "癌", "type": "疾病"}]), is_structure("MedDG", [])
      (True, False)
    """
    if not isinstance(gold, type(parse(task, "", (), "strict"))):
        return False
    if isinstance(gold, list):
        return all(isinstance(one, dict) for one in gold)
    return not isinstance(gold, dict) or all(isinstance(text, str) for text in gold.values())


def with_structured_gold(
    items: Sequence[Item], structured: dict[str, list[dict[str, Any]]], path: Path
) -> list[Item]:
    """Items with the gold of a structured file, task by task in its order.

    Args:
      items: of any of the 16 tasks, each task's in the file's order.
      structured: from `read_structured`.
      path: of the file, for errors.

    Raises:
      PredictionError: the file is of other items, or in another order.
    """
    places: dict[str, list[int]] = {task: [] for task, entries in structured.items() if entries}
    for i, item in enumerate(items):
        places.setdefault(item.type, []).append(i)
    found = list(items)
    for task, mine in places.items():
        entries = structured.get(task, [])
        try:
            check_order(task, [str(e["sample_id"]) for e in entries], [items[i].id for i in mine])
        except PredictionError as error:
            raise PredictionError(f"{path}: {error}") from None
        for i, entry in zip(mine, entries, strict=True):
            if not is_structure(task, entry["answer"]):
                problem = f"expected the answer to item {items[i].id!r} as the task's structure"
                raise PredictionError(f"{path}: {task}: {problem}, got another layout")
            found[i] = items[i]._replace(gold=entry["answer"])
    return found
