"""Files to tokenised examples, with an account of every record that did not become one."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32, Int64
from rich.progress import track
from transformers import PreTrainedTokenizerFast

from medcare_jax.data.chat import Example, count_leading_turns, encode_dialogues
from medcare_jax.data.records import Record, RecordError, RecordSource, open_records
from medcare_jax.files import file_digest

__all__ = ["ExampleReader", "Examples", "FileReport"]

_CHUNK = 1000  # dialogues in one call of the tokenizer


@dataclass(frozen=True)
class FileReport:
    """What became of the records of one file; counts are of records unless named otherwise.

    Attributes:
      path: The file.
      sha256: Digest of its bytes.
      weight: How often each example is seen in an epoch, on average.
      records: Good and bad together.
      bad_records: Left out because of ``on_bad_record="skip"``.
      problems: One line for each of them: place, field and what was expected.
      leading_turns: gpt turns in front of the first human one, left out of their examples.
      over_long: Longer than a row; dropped or cut as the policy says.
      without_target: Left out because no token to learn was left.
      kept: Examples that are trained on.
      tokens: Their tokens.
      target_tokens: Those of them that a loss term predicts.
    """

    path: str
    sha256: str
    weight: float
    records: int
    bad_records: int
    problems: tuple[str, ...]
    leading_turns: int
    over_long: int
    without_target: int
    kept: int
    tokens: int
    target_tokens: int


class Examples:
    """Examples by number; once joined they take 5 bytes a token.

    Attributes:
      names: Id and location of each example.
    """

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []
        self._parts: list[Example] = []

    def add(self, record: Record, example: Example) -> None:
        """Appends the example of a record."""
        self.names.append((record.id, record.location))
        self._parts.append(example)

    def join(self) -> None:
        """Puts all examples behind each other in two arrays; nothing can be added any more."""
        tokens, is_target = zip(*self._parts, strict=True)
        self.tokens: Int32[np.ndarray, " n"] = np.concatenate(tokens)
        self.is_target: Bool[np.ndarray, " n"] = np.concatenate(is_target)
        self.lengths: Int64[np.ndarray, " examples"] = np.array([*map(len, tokens)], np.int64)
        self._ends: Int64[np.ndarray, " examples"] = np.cumsum(self.lengths)
        self._parts.clear()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Example:
        span = slice(self._ends[number] - self.lengths[number], self._ends[number])
        return Example(self.tokens[span], self.is_target[span])


@dataclass(frozen=True)
class ExampleReader:
    """Reads and tokenises files; the fields are those of `make_batches` in pipeline.py."""

    tokenizer: PreTrainedTokenizerFast
    targets: str
    row_length: int
    over_long: str
    on_bad_record: str
    show_progress: bool

    def read(self, path: str | Path, examples: Examples, *, weight: float) -> FileReport:
        """Adds a file's examples and returns what became of its records.

        Raises:
          RecordError: A bad record with ``"stop"``, or no good one at all.
        """
        source = open_records(path, on_bad_record=self.on_bad_record)
        errors = list(source.errors)
        counts: Counter[str] = Counter()
        for record, outcome in self._encoded(source):
            if isinstance(outcome, RecordError):
                if self.on_bad_record == "stop":
                    raise outcome
                errors.append(outcome)
                continue
            counts["leading_turns"] += count_leading_turns(record)
            example = self._fitted(outcome, counts)
            if example is not None:
                examples.add(record, example)
        names = ("leading_turns", "over_long", "without_target", "kept", "tokens", "target_tokens")
        return FileReport(
            path=str(path),
            sha256=_digest(Path(path)),
            weight=float(weight),
            records=len(source) + len(source.errors),
            bad_records=len(errors),
            problems=tuple(map(str, errors)),
            **{name: counts[name] for name in names},
        )

    def _encoded(self, source: RecordSource) -> Iterator[tuple[Record, Example | RecordError]]:
        """Every record with its example, tokenised many at a time."""
        starts = range(0, len(source), _CHUNK)
        title = f"tokenise {Path(source.path).name}"
        for start in track(starts, title, disable=not self.show_progress):
            records = source[start : start + _CHUNK]
            outcomes = encode_dialogues(records, self.tokenizer, targets=self.targets)
            yield from zip(records, outcomes, strict=True)

    def _fitted(self, example: Example, counts: Counter[str]) -> Example | None:
        """The example as it goes into a row, if it does."""
        if len(example.tokens) > self.row_length:
            counts["over_long"] += 1
            if self.over_long == "drop":
                return None
            example = Example(*(part[: self.row_length] for part in example))
        terms = int(example.is_target[1:].sum())  # the first token is predicted from nothing
        if not terms:
            counts["without_target"] += 1
            return None
        counts.update(kept=1, tokens=len(example.tokens), target_tokens=terms)
        return example


def _digest(path: Path) -> str:
    """Digest of a file, or of the names and digests of a prepared folder's files."""
    if path.is_file():
        return file_digest(path)
    folder = path if path.is_dir() else path.parent  # "folder/split" names no file of its own
    parts = [f"{file.name} {_digest(file)}" for file in sorted(folder.iterdir()) if file.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
