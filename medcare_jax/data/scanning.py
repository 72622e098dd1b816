"""JSON text to values with the line each one begins on, read in pieces.

The standard parser reads a whole list at once and forgets where its elements stood. Here a list
is read element by element, so that an error can name a line and a large file needs little memory.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

__all__ = ["RecordError", "parse_json", "scan_json"]

_CHUNK = 1 << 20  # characters
_BLANK = re.compile(r"[ \t\r\n]*")
# The parser points at the begin of what it could not finish; the longest but strings, which have an
# error of their own, are -Infinity and an escaped pair of surrogates.
_LONGEST_TOKEN = 16


class RecordError(ValueError):
    """A bad record: where it stands, which field, and what was expected there. Never its text.

    Attributes:
      location: ``"file:line"``, or ``"file:number"`` in a binary file, counted from 1.
      field: Path inside the record such as ``"conversations[1].value"``; empty for all of it.
      problem: What was expected and what came.
    """

    def __init__(self, location: str, field: str, problem: str):
        super().__init__(": ".join(part for part in (location, field, problem) if part))
        self.location, self.field, self.problem = location, field, problem


def scan_json(path: Path) -> Iterator[tuple[str, Any | RecordError]]:
    """Yields each value of a JSON list or of JSON Lines with its ``"file:line"``.

    The layout is told by the first character, not by the file's name; a byte order mark and CRLF
    are accepted. A line of JSON Lines that is not JSON is yielded as a `RecordError`, because the
    next line is independent of it. In a list nothing behind such a place can be trusted: it is
    raised.

    Args:
      path: A UTF-8 text file.

    Yields:
      Pairs of a location and the value that begins there.

    Raises:
      RecordError: The file is not UTF-8, holds neither layout, or its list is broken.
      FileNotFoundError: There is no such file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            window = _Window(path, stream)
            first = window.peek()
            if first not in ("[", "{"):
                came = "an empty file" if not first else "something else"
                window.fail(f"expected a JSON list or one JSON object a line, got {came}")
            yield from window.elements() if first == "[" else window.lines()
    except UnicodeDecodeError:
        location = f"{path}:{_undecodable_line(path)}"
        raise RecordError(location, "", "expected UTF-8, got other bytes; convert it") from None


def parse_json(text: str, location: str) -> Any | RecordError:
    """Returns the value of one JSON document, or the `RecordError` that it deserves.

    Args:
      text: The document.
      location: Where it stands, for the error.

    Examples:
      >>> parse_json('{"a": 1}', "train.jsonl:1")
      {'a': 1}
      >>> str(parse_json('{"a": 1', "train.jsonl:7"))
      "train.jsonl:7: not JSON: Expecting ',' delimiter"
    """
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return RecordError(location, "", f"not JSON: {_reason(error)}")


class _Window:
    """The part of a text file being parsed; knows the line of its first unread character."""

    def __init__(self, path: Path, stream: TextIO):
        self.path, self.stream = path, stream
        self.text, self.at, self.line, self.is_ended = "", 0, 1, False

    def fail(self, problem: str) -> NoReturn:
        raise RecordError(f"{self.path}:{self.line}", "", problem)

    def grow(self) -> None:
        """Drops what was read and doubles what is left, so that few rescans read a long record."""
        left = len(self.text) - self.at
        more = self.stream.read(max(_CHUNK, left))
        self.text, self.at, self.is_ended = self.text[self.at :] + more, 0, not more

    def advance(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def peek(self) -> str:
        """Returns the next character that is not blank; empty at the end of the file."""
        while True:
            match = _BLANK.match(self.text, self.at)
            self.advance(match.end() if match else self.at)
            if self.at < len(self.text) or self.is_ended:
                return self.text[self.at : self.at + 1]
            self.grow()

    def value(self) -> Any:
        """Returns the JSON value that begins here, reading on while it is not complete."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.is_ended or not self.may_be_cut(error):
                    began = self.line
                    self.advance(error.pos)
                    self.fail(f"the record that begins on line {began} is not JSON: {error.msg}")
            except (ValueError, RecursionError) as error:
                self.fail(f"not JSON that can be read: {_reason(error)}")
            else:
                # A number at the very end of the window may go on behind it.
                if end < len(self.text) or self.is_ended:
                    self.advance(end)
                    return value
            self.grow()

    def may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether an error may be the end of the window, and not what stands in it."""
        is_at_end = len(self.text) - error.pos <= _LONGEST_TOKEN
        return is_at_end or error.msg.startswith("Unterminated string")

    def elements(self) -> Iterator[tuple[str, Any]]:
        """Yields the elements of the list that begins here."""
        self.advance(self.at + 1)
        is_open = self.peek() != "]"
        while is_open:
            self.peek()
            location = f"{self.path}:{self.line}"
            yield location, self.value()
            mark = self.peek()
            if mark not in (",", "]"):
                self.fail("expected ',' or ']' after a record of the list")
            is_open = mark == ","
            if is_open:
                self.advance(self.at + 1)
        self.advance(self.at + 1)
        if self.peek():
            self.fail("expected nothing behind the end of the list")

    def lines(self) -> Iterator[tuple[str, Any]]:
        """Yields the value of each line that is not blank."""
        while self.peek():
            location = f"{self.path}:{self.line}"
            while (end := self.text.find("\n", self.at)) < 0 and not self.is_ended:
                self.grow()
            end = end if end >= 0 else len(self.text)
            yield location, parse_json(self.text[self.at : end], location)
            self.advance(end)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; two equal keys would silently lose one of the two values."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(f"{name} is not a JSON value")


def _reason(error: Exception) -> str:
    """What the parser says, which never quotes the text."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _undecodable_line(path: Path) -> int:
    """The number of the first line that is not UTF-8; a line feed is never part of a character."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)
