"""Questions that stand both in training and in evaluation data: a leak that makes scores worthless.

Two questions are the same if nothing differs but case, width, punctuation and blanks. Of a multiple
choice question only the stem counts, so that shuffled or changed options do not hide it.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medcare_jax.data.records import Record

__all__ = ["Overlap", "OverlapReport", "find_overlap", "normalise_question"]

_OPTIONS = re.compile(r"^[ \t]*\(?A[ \t]*[.、:)][ \t]*\S.*?^[ \t]*\(?B[ \t]*[.、:)]", re.M | re.S)
_NOT_A_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Overlap:
    """One evaluation question that is trained on.

    Attributes:
      evaluation: Location of the evaluation record.
      training: Locations of the training records with the same question.
    """

    evaluation: str
    training: tuple[str, ...]


@dataclass(frozen=True)
class OverlapReport:
    """The outcome of `find_overlap`; ``dataclasses.asdict`` of it is JSON.

    Attributes:
      training_records: Training records looked at.
      evaluation_records: Evaluation records looked at.
      overlaps: Every evaluation record whose question is trained on; empty if all is well.
    """

    training_records: int
    evaluation_records: int
    overlaps: tuple[Overlap, ...]


def find_overlap(
    train_sources: Sequence[Iterable[Record]], evaluation_sources: Sequence[Iterable[Record]]
) -> OverlapReport:
    r"""Returns which evaluation questions are among the training questions.

    An evaluation record's question is its first human turn; in training every human turn counts.

    Args:
      train_sources: Records of each training file.
      evaluation_sources: Records of each evaluation file.

    Examples:
      >>> from medcare_jax.data.records import Turn
      >>> answer = Turn("gpt", "B")
      >>> old = Record("1", (Turn("human", "Which drug?\nA. x\nB. y"), answer), None, "a.json:2")
      >>> new = Record("2", (Turn("human", "WHICH drug ?"), answer), None, "b.json:9")
      >>> find_overlap([[old]], [[new]]).overlaps
      (Overlap(evaluation='b.json:9', training=('a.json:2',)),)
    """
    asked: dict[str, list[str]] = {}
    for record in (record for source in evaluation_sources for record in source):
        asked.setdefault(_questions(record)[0], []).append(record.location)
    trained: dict[str, list[str]] = {}
    training_records = 0
    for record in (record for source in train_sources for record in source):
        training_records += 1
        for question in asked.keys() & set(_questions(record)):
            trained.setdefault(question, []).append(record.location)
    return OverlapReport(
        training_records=training_records,
        evaluation_records=sum(map(len, asked.values())),
        overlaps=tuple(
            Overlap(location, tuple(trained[question]))
            for question, locations in asked.items()
            if question in trained
            for location in locations
        ),
    )


def normalise_question(text: str) -> str:
    r"""Returns the letters and digits of a question's stem, NFKC and without case.

    Examples:
      >>> normalise_question("１. Is it “AF”?\nA. yes\nB. no")
      '1isitaf'
    """
    text = unicodedata.normalize("NFKC", text)
    options = _OPTIONS.search(text)
    stem = _NOT_A_WORD.sub("", text[: options.start()] if options else text)
    # A text of options or of signs alone is a question too.
    return (stem or _NOT_A_WORD.sub("", text) or text).casefold()


def _questions(record: Record) -> list[str]:
    """What the human asks in each turn."""
    return [normalise_question(turn.text) for turn in record.turns if turn.role == "human"]
