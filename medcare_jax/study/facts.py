"""Synthetic tasks that a tiny random model can learn in seconds, and forget.

*Facts* (knowledge-intensive) say which code a made-up word has; nothing but memory holds the
answer. *Notes* (alignment-required) ask for a strict line whose code follows from the word's
first letter: a convention, learnt from other words than those of the facts.
"""

import itertools
import json
import pathlib
import random
from typing import Any

from medcare_jax.files import write_text

_CONSONANTS, _VOWELS = "bdfgklmnprst", "aeiou"
_CODES = tuple(f"{letter}{digits}" for letter in "ACEH" for digits in ("17", "38", "52", "94"))
_OPTIONS = 4


def write_fact_tasks(
    folder: pathlib.Path, *, seed: int, facts: int, notes: int, aligned: int, test: int
) -> dict[str, pathlib.Path]:
    """Writes the tasks in the layout of MedCareData; the same arguments give the same bytes.

    The test of the facts asks what was taught, as it was taught: it measures what is still
    there, not what generalises. The notes of the test are about words not seen before.

    Args:
      folder: Gets `1-stage/train.json`, `2-stage/train.json`, `test/retained.json` and
        `test/coding.json`.
      seed: Of words and codes.
      facts: Taught in stage 1 and asked in the test.
      notes: Alignment-required dialogues of stage 1.
      aligned: Alignment-required dialogues of stage 2.
      test: Notes of the test.

    Returns:
      Paths by name, such as `1-stage/train`.
    """
    rng = random.Random(f"facts/{seed}")
    words = [
        a + b + c + d + e
        for a, b, c, d, e in itertools.product(*[_CONSONANTS, _VOWELS] * 2, _CONSONANTS)
    ]
    drawn = iter(rng.sample(words, facts + notes + aligned + test))
    taught = [_fact(rng, next(drawn)) for _ in range(facts)]
    made = {
        "1-stage/train": [*taught, *(_note(next(drawn)) for _ in range(notes))],
        "2-stage/train": [_note(next(drawn)) for _ in range(aligned)],
        "test/retained": taught,
        "test/coding": [_note(next(drawn)) for _ in range(test)],
    }
    paths = {}
    for name, items in made.items():
        path = paths[name] = folder / f"{name}.json"
        is_test = name.startswith("test/")
        kept = [
            item if is_test else {k: v for k, v in item.items() if k != "eval"} for item in items
        ]
        write_text(path, json.dumps(kept, indent=0) + "\n")
    return paths


def _fact(rng: random.Random, word: str) -> dict[str, Any]:
    """Which code a word has, and three that it has not."""
    options = rng.sample(_CODES, _OPTIONS)
    answer = rng.choice(options)
    return _item(f"ki-fact-{word}", f"code of {word}?", answer, {"options": options})


def _note(word: str) -> dict[str, Any]:
    """A word to be filed under its first letter."""
    answer = f"{word[0].upper()}00 | filed"
    return _item(f"ar-note-{word}", f"file {word}", answer, {"format": "code_title"})


def _item(key: str, prompt: str, answer: str, judged: dict[str, Any]) -> dict[str, Any]:
    """One dialogue with what an evaluation needs."""
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {
        "id": key,
        "conversations": turns,
        "eval": {"answer": answer, "type": key.split("-")[1], "sample_id": key, **judged},
    }
