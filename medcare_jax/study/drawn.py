"""Tasks drawn from a folder in MedCareData's layout: other items for every seed.

What is taught is asked again as an exam, so that the test measures what is still there; the
alignment's test comes from the folder's own test file, whose items no training file has.
"""

import json
import pathlib
import random
from collections.abc import Sequence
from typing import Any

from medcare_jax.data.records import Record, open_records
from medcare_jax.evaluation.asking import ANNOUNCEMENTS
from medcare_jax.evaluation.tasks import SUFFIXES, TASKS, find_file
from medcare_jax.files import write_text
from medcare_jax.study.settings import Drawn

_LETTER = ANNOUNCEMENTS["en"]


def draw_tasks(folder: pathlib.Path, drawn: Drawn, *, seed: int) -> dict[str, pathlib.Path]:
    """Writes the tasks in the layout of MedCareData; the same arguments give the same bytes.

    Args:
      folder: Gets `1-stage/train.json`, `2-stage/train.json` and the two test files.
      drawn: From where, what and how many.
      seed: Decides which.

    Returns:
      Paths by name, such as `1-stage/train`.

    Raises:
      ValueError: The source has fewer such dialogues than are asked for, or what is to be taught
        does not end in a letter.
      FileNotFoundError, RecordError: The source lacks a file, or a file a usable record.
    """
    rng = random.Random(f"drawn/{seed}")
    root = pathlib.Path(drawn.folder)
    first, second = (open_records(root / f"{n}-stage" / "train.json") for n in (1, 2))
    test = find_file(root / "test", drawn.written)
    if test is None:
        raise FileNotFoundError(f"drawn: no test file of task {drawn.written!r} in {root / 'test'}")

    def draw(records: Sequence[Record], beginnings: tuple[str, ...], count: int) -> list[Record]:
        those = [r for r in records if r.id.startswith(beginnings) and _size(r) <= drawn.longest]
        if len(those) < count:
            raise ValueError(
                f"drawn: expected {count} dialogues of {', '.join(beginnings)} with at most "
                f"{drawn.longest} characters in {root}, found {len(those)}; draw fewer"
            )
        return rng.sample(those, count)

    taught = draw(first, drawn.exam_ids, drawn.taught)
    mixed = draw(first, drawn.written_ids, drawn.mixed)
    aligned = draw(second, drawn.written_ids, drawn.aligned)
    asked = draw(open_records(test), ("",), drawn.test)
    made = {
        "1-stage/train": [_item(record) for record in taught + mixed],
        "2-stage/train": [_item(record) for record in aligned],
        f"test/{TASKS[drawn.exam].files[0]}": [_exam_item(record) for record in taught],
        f"test/{TASKS[drawn.written].files[0]}": [_item(r) | {"eval": r.evaluation} for r in asked],
    }
    paths = {}
    for name, items in made.items():
        path = paths[name] = folder / f"{name}.json"
        write_text(path, json.dumps(items, indent=0, ensure_ascii=False) + "\n")
    return paths


def _size(record: Record) -> int:
    """Characters of a dialogue."""
    return sum(len(turn.text) for turn in record.turns)


def _item(record: Record) -> dict[str, Any]:
    """A record as a file has it."""
    turns = [{"from": turn.role, "value": turn.text} for turn in record.turns]
    return {"id": record.id, "conversations": turns}


def _exam_item(record: Record) -> dict[str, Any]:
    """A taught question as a test asks it: without the request for the format, with its letter."""
    _, found, letter = record.turns[-1].text.rpartition(_LETTER)
    if not found:
        raise ValueError(f"{record.location}: expected an answer with {_LETTER!r} and a letter")
    item = _item(record)
    item["conversations"][0]["value"] = record.turns[0].text.removesuffix(SUFFIXES["en"])
    item["eval"] = {"answer": letter.rstrip(". \n"), "type": "taught", "sample_id": record.id}
    return item
