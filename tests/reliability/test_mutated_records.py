"""Ten thousand damaged files of dialogues: each record is read, or named by file and line."""

import collections
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medcare_jax.conversion.bases import byte_tokenizer
from medcare_jax.data.pipeline import make_batches
from medcare_jax.data.records import RecordError, open_records
from tests.reliability.test_mutated_files import mutate

SAMPLE, ALL = 300, 10_000
PATIENT = "Ms. Quill of Elm Street"

Random = np.random.Generator


def good(number: int) -> dict[str, Any]:
    """A record as it should be; both languages, escapes and a system turn occur."""
    turns = [
        {"from": "human", "value": f'{PATIENT} 咳嗽三天 \\ "{number}"?'},
        {"role": "assistant", "value": f"答案为 {number}"},
    ]
    if number % 3 == 0:
        turns.insert(0, {"from": "system", "value": "Be brief."})
    return {"id": f"case-{number}", "conversations": turns, "eval": {"answer": ["A", number]}}


VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e300, "", "   ", "x" * 300_000, [], {}, [[]], [None], {"from": "human"}),
    *("\x00", "\ud800", "\u2028", "\ufeff", [[[[[[[]]]]]]], {"value": {"value": {}}}),
)


def _turns(record: dict[str, Any], random: Random) -> list[Any]:
    """Its turns, if an earlier change has left it any."""
    turns = record.get("conversations")
    return turns if isinstance(turns, list) and turns else [{}]


def _set_turn(record: dict[str, Any], random: Random) -> None:
    turns = _turns(record, random)
    turns[random.integers(len(turns))] = VALUES[random.integers(len(VALUES))]


def _set_in_turn(record: dict[str, Any], random: Random) -> None:
    turns = _turns(record, random)
    turn = turns[random.integers(len(turns))]
    if isinstance(turn, dict):
        key = random.choice(["from", "role", "value", "other"])
        turn[str(key)] = VALUES[random.integers(len(VALUES))]


def _drop_from_turn(record: dict[str, Any], random: Random) -> None:
    turn = _turns(record, random)[0]
    if isinstance(turn, dict) and turn:
        turn.pop(sorted(turn)[random.integers(len(turn))])


def _set_field(record: dict[str, Any], random: Random) -> None:
    key = str(random.choice(["id", "conversations", "eval", "other"]))
    record[key] = VALUES[random.integers(len(VALUES))]


def _only_system(record: dict[str, Any], random: Random) -> None:
    record["conversations"] = [{"from": "system", "value": PATIENT}] * int(random.integers(1, 3))


def _taken_id(record: dict[str, Any], random: Random) -> None:
    record["id"] = "case-0"


def _reversed(record: dict[str, Any], random: Random) -> None:
    _turns(record, random).reverse()


CHANGES: tuple[Callable[[dict[str, Any], Random], None], ...] = (
    *(_set_turn, _set_in_turn, _drop_from_turn, _set_field, _only_system, _taken_id, _reversed),
)


def damaged_file(random: Random) -> bytes:
    """A file of six records as a list or lines, damaged in its records, its bytes, or both."""
    records: list[Any] = [good(number) for number in range(6)]
    how = random.choice(["records", "bytes", "both", "nothing"], p=[0.4, 0.3, 0.2, 0.1])
    if how in ("records", "both"):
        for _ in range(random.integers(1, 4)):
            CHANGES[random.integers(len(CHANGES))](records[random.integers(6)], random)
    if random.random() < 0.02:
        records[3] = json.loads("[" * 300 + "]" * 300)
    rows = [json.dumps(each, ensure_ascii=bool(random.integers(2))) for each in records]
    if random.random() < 0.02:
        rows[random.integers(6)] = '{"id": "deep", "conversations": ' + "[" * 200_000
    text = "\n".join(rows) if random.random() < 0.5 else "[\n" + ",\n".join(rows) + "\n]"
    text = text.replace("\n", "\r\n") if random.random() < 0.1 else text
    content = text.encode(errors="surrogatepass")
    content = b"\xef\xbb\xbf" + content if random.random() < 0.1 else content
    return mutate(content, random, head=400) if how in ("bytes", "both") else content


def count_of(content: bytes) -> int | None:
    """How many values the file holds, found out in another way; None if nobody can say."""
    try:
        text = content.decode("utf-8-sig").lstrip(" \t\r\n")
        if text.startswith("["):
            return len(json.loads(text))
    except (ValueError, RecursionError):
        return None
    lines = [line for line in text.split("\n") if line.strip(" \t\r")]
    return len(lines) if text.startswith("{") else None


def check_error(error: RecordError, path: pathlib.Path, content: bytes) -> None:
    """It names file and line, and quotes nothing."""
    file, _, line = error.location.rpartition(":")
    assert file == str(path)
    assert 1 <= int(line) <= content.count(b"\n") + 1
    assert str(error).startswith(error.location)
    assert not any(word in str(error) for word in ("Quill", "咳嗽", "答案"))
    assert len(str(error)) < 400 + len(str(path))


def outcome(path: pathlib.Path, content: bytes) -> str:
    """What came of a file; raises if it is not one of the outcomes that are promised."""
    try:
        found = open_records(path, on_bad_record="skip")
    except RecordError as error:
        check_error(error, path, content)
        with pytest.raises(RecordError):
            open_records(path)
        return "no good record" if "no good record" in str(error) else "file refused"
    for error in found.errors:
        check_error(error, path, content)
    expected = count_of(content)
    assert expected is None or len(found) + len(found.errors) == expected
    for record in found:
        assert record.turns
        assert all(turn.text.strip() for turn in record.turns)
    if not found.errors:
        assert [each.id for each in open_records(path)] == [each.id for each in found]
        return "all read"
    with pytest.raises(RecordError) as first:
        open_records(path)
    assert str(first.value) == str(found.errors[0])
    return "bad ones named"


@pytest.mark.parametrize("count", [SAMPLE, pytest.param(ALL, marks=pytest.mark.slow)])
def test_nothing_is_dropped_in_silence(tmp_path: pathlib.Path, count: int) -> None:
    path, outcomes = tmp_path / "train.json", collections.Counter[str]()
    for seed in range(count):
        content = damaged_file(np.random.default_rng(seed))
        path.write_bytes(content)
        try:
            outcomes[outcome(path, content)] += 1
        except Exception as error:
            raise AssertionError(f"file {seed}: {type(error).__name__}: {error}") from error
    print(dict(outcomes))
    assert min(outcomes.values()) > count // 50
    assert len(outcomes) == 4 or count < ALL


def test_the_report_of_a_run_counts_what_was_skipped(tmp_path: pathlib.Path) -> None:
    records: list[Any] = [good(number) for number in range(8)]
    _only_system(records[2], np.random.default_rng(0))
    _taken_id(records[5], np.random.default_rng(0))
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    settings: dict[str, Any] = {
        "files": [path],
        "row_length": 256,
        "rows": 2,
        "epochs": 1,
        "targets": "assistant",
        "over_long": "drop",
        "seed": 0,
    }
    with pytest.raises(RecordError, match=r"train.jsonl:3: conversations"):
        make_batches(byte_tokenizer(), on_bad_record="stop", **settings)
    (report,) = make_batches(byte_tokenizer(), on_bad_record="skip", **settings).report.files
    assert (report.bad_records, report.kept) == (2, 6)
