"""Files of dialogues to typed records: JSON list, JSON Lines or array_record.

Every record is checked here, once, so that nothing behind this file meets a bad one. An error names
file, line and field and never holds the text, which may be about a patient.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from medcare_jax.data.prepared import INFO_FILE, Entries, open_array_record, open_prepared
from medcare_jax.data.scanning import RecordError, scan_json

__all__ = ["Record", "RecordError", "RecordSource", "Turn", "open_records", "parse_record"]

Role = Literal["system", "human", "gpt"]
T = TypeVar("T")

_ROLES: Mapping[Any, Role] = {
    "system": "system",
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
}
# A lone half of a surrogate pair is no character, and NUL ends a string for some tokenizers.
NOT_TEXT = "expected text, got a NUL or half a surrogate pair in it"
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a dialogue.

    Attributes:
      role: Who speaks; ``user`` and ``assistant`` in a file are ``human`` and ``gpt`` here.
      text: What is said, exactly as in the file.
    """

    role: Role
    text: str


@dataclasses.dataclass(frozen=True)
class Record:
    """One checked dialogue.

    Attributes:
      id: The file's own id; where it gives none the location, and its number too on a shared line.
      turns: At least one ``human`` turn and behind it one ``gpt`` turn; ``system`` at most first.
      evaluation: The gold of a test item (key ``eval``), or None.
      location: ``"file:line"`` of its first character; ``"file:number"`` in an array_record.
    """

    id: str
    turns: tuple[Turn, ...]
    evaluation: Mapping[str, Any] | None
    location: str


class RecordSource(Sequence[Record]):
    """The good records of one file by number; what was left out stands in `errors`.

    Attributes:
      path: The file.
      errors: One error for each bad record that was skipped.
    """

    def __init__(
        self,
        path: str,
        fetch: Callable[[int], Record],
        kept: Sequence[int],
        errors: tuple[RecordError, ...],
    ):
        self.path, self.errors = path, errors
        self._fetch, self._kept = fetch, kept

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self._fetch(number) for number in self._kept[index]]
        return self._fetch(self._kept[index])


def open_records(path: str | Path, *, on_bad_record: str = "stop") -> RecordSource:
    """Returns the checked records of a file.

    Text files are read into memory; an array_record is checked once and then read by random access.

    Args:
      path: A JSON list or JSON Lines file in UTF-8 (told by content), an ``.array_record`` file
        whose entries are JSON documents, or the folder of a data set prepared by TFDS. A folder
        with several splits needs the split's name behind it: ``folder/train``.
      on_bad_record: ``"stop"`` raises the first error, ``"skip"`` keeps it in ``errors``.

    Raises:
      RecordError: A bad record with ``"stop"``; or text that cannot be read on; or no good record.
      FileNotFoundError: There is no such file.
      ValueError: ``on_bad_record`` is neither of the two.
    """
    if on_bad_record not in ("stop", "skip"):
        raise ValueError(f"on_bad_record must be 'stop' or 'skip', got {on_bad_record!r}")
    entries = _open_entries(Path(path))
    kept: list[int] = []
    records: list[Record] = []
    errors: list[RecordError] = []
    for number, outcome in enumerate(_checked(_located(Path(path), entries))):
        if isinstance(outcome, Record):
            kept.append(number)
            if entries is None:
                records.append(outcome)
        elif on_bad_record == "stop":
            raise outcome
        else:
            errors.append(outcome)
    if not kept:
        raise RecordError(f"{path}:1", "", f"no good record, {len(errors)} bad ones") from (
            errors[0] if errors else None
        )
    if entries is None:
        return RecordSource(str(path), records.__getitem__, range(len(records)), tuple(errors))
    return RecordSource(str(path), _fetch_from(Path(path), entries), kept, tuple(errors))


def parse_record(item: Any, location: str) -> Record:
    """Returns the record that one JSON object of MedCareData's layout describes.

    Args:
      item: ``{"id"?, "conversations": [{"from", "value"}, ...], "eval"?}``; other keys are left
        alone. ``messages``, ``role`` and ``content``, as chat APIs call them, will do as well.
      location: Where it stands, for errors.

    Raises:
      RecordError: Something is missing, of the wrong type, empty, or cannot be text.

    Examples:
      >>> turns = [{"from": "human", "value": "Fever?"}, {"from": "gpt", "value": "No."}]
      >>> parse_record({"id": "7", "conversations": turns}, "train.json:2").turns[1]
      Turn(role='gpt', text='No.')
      >>> parse_record({"id": "7", "conversations": turns[:1]}, "train.json:2")
      Traceback (most recent call last):
      ...
      medcare_jax.data.scanning.RecordError: train.json:2: conversations: expected a gpt turn \
behind a human turn, got none
    """
    try:
        record = _typed(item, dict, "", "an object")
        key = _only(record, ("conversations", "messages"), "")
        items = _typed(record[key], list, key, "a list of turns")
        record_id = _id(record.get("id"), location)
        return Record(record_id, _turns(items, key), _evaluation(record.get("eval")), location)
    except _FieldError as error:
        raise RecordError(location, error.field, error.problem) from None


class _FieldError(Exception):
    """A `RecordError` whose location is not known yet."""

    def __init__(self, field: str, problem: str):
        self.field, self.problem = field, problem


def _typed(value: object, kind: type[T], field: str, expected: str) -> T:
    """The value, if it has the expected type."""
    if not isinstance(value, kind):
        came = "nothing" if value is None else type(value).__name__
        raise _FieldError(field, f"expected {expected}, got {came}")
    return value


def _text(value: object, field: str) -> str:
    """The value, if it is text with something in it."""
    text = _typed(value, str, field, "text")
    if not text.strip():
        raise _FieldError(field, "expected text, got an empty one")
    if not is_text(text):
        raise _FieldError(field, NOT_TEXT)
    return text


def _id(value: object, location: str) -> str:
    """The id as text; numbers are common in other people's files."""
    if value is None:
        return location
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, "id")


def _only(item: Mapping[str, object], names: tuple[str, str], field: str) -> str:
    """Which of two names for the same thing an object has; one of them, not both."""
    found = [name for name in names if name in item]
    if len(found) != 1:
        place = f"{field}.{names[0]}".lstrip(".")
        raise _FieldError(place, f"expected one of {' and '.join(names)}, got {len(found)}")
    return found[0]


def _turns(items: list[object], key: str) -> tuple[Turn, ...]:
    """The turns of one dialogue, each checked, and together something to learn from."""
    turns = tuple(_turn(item, f"{key}[{i}]", i) for i, item in enumerate(items))
    roles = [turn.role for turn in turns]
    if "human" not in roles or "gpt" not in roles[roles.index("human") :]:
        raise _FieldError(key, "expected a gpt turn behind a human turn, got none")
    return turns


def _turn(item: object, field: str, index: int) -> Turn:
    """One turn."""
    turn = _typed(item, dict, field, "an object with from and value")
    speaker = _only(turn, ("from", "role"), field)
    content = _only(turn, ("value", "content"), field)
    name = _typed(turn[speaker], str, f"{field}.{speaker}", "text")
    if name not in _ROLES:
        raise _FieldError(f"{field}.{speaker}", f"expected one of {', '.join(_ROLES)}")
    if _ROLES[name] == "system" and index:
        raise _FieldError(f"{field}.{speaker}", "expected a system turn only as the first turn")
    return Turn(_ROLES[name], _text(turn[content], f"{field}.{content}"))


def _evaluation(value: object) -> Mapping[str, Any] | None:
    """The gold of a test item."""
    if value is None:
        return None
    gold: Mapping[str, Any] = _typed(value, dict, "eval", "an object")
    if not is_text(gold):
        raise _FieldError("eval", NOT_TEXT)
    return gold


def is_text(value: object) -> bool:
    r"""Whether all text inside a JSON value can be written to a file and tokenised.

    Examples:
      >>> is_text({"text": ["fever"]}), is_text({"text": ["\ud83d"]})
      (True, False)
    """
    return not any(_NO_TEXT.search(text) for text in _texts(value))


def _texts(value: object) -> Iterator[str]:
    """All text inside a JSON value, however deep."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            pending += [*item, *item.values()]
        elif isinstance(item, list):
            pending += item


def _checked(items: Iterator[tuple[str, Any]]) -> Iterator[Record | RecordError]:
    """Each item as a record or as the error it deserves; an id may be used once."""
    seen: dict[str, str] = {}
    for number, (location, item) in enumerate(items, 1):
        if isinstance(item, RecordError):
            yield item
            continue
        try:
            record = with_own_id(parse_record(item, location), location, number, seen)
        except RecordError as error:
            yield error
        else:
            yield record


def with_own_id(record: Record, location: str, number: int, seen: dict[str, str]) -> Record:
    """The record, whose id is noted in `seen` with its location and may not be there already.

    Raises:
      RecordError: It is.
    """
    if record.id == location and location in seen:  # a list on one line, without ids
        record = dataclasses.replace(record, id=f"{location}#{number}")
    if record.id in seen:
        taken = f"expected an id of its own, got the one of {seen[record.id]}"
        raise RecordError(location, "id", taken)
    seen[record.id] = location
    return record


def _open_entries(path: Path) -> Entries | None:
    """The entries of an array_record or a TFDS folder by number; None for a text file."""
    if path.is_dir() or (path.parent / INFO_FILE).is_file() and not path.exists():
        return open_prepared(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of records at {path}, found none")
    return open_array_record(path) if ".array_record" in path.name else None


def _located(path: Path, entries: Entries | None) -> Iterator[tuple[str, Any]]:
    """Every value of a file with its location."""
    if entries is None:
        yield from scan_json(path)
    else:
        for number in range(len(entries)):
            location = f"{path}:{number + 1}"
            yield location, entries.value(number, location)


def _fetch_from(path: Path, entries: Entries) -> Callable[[int], Record]:
    """Random access to the records of an array_record."""

    def fetch(number: int) -> Record:
        """The record of one entry."""
        location = f"{path}:{number + 1}"
        value = entries.value(number, location)
        if isinstance(value, RecordError):  # the file was damaged since it was checked
            raise value
        return parse_record(value, location)

    return fetch
