import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcare_jax.data import scanning
from medcare_jax.data.scanning import RecordError, parse_json, scan_json

VALUES = [{"a": "é🙏\n,]"}, {"b": [1, -2.5e3, {"c": None}]}, {"漢": '\\" ]'}, {}, {"d": True}]


def scanned(path) -> list:
    return list(scan_json(path))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_is_read_whatever_the_chunk_and_layout(
    tmp_path, monkeypatch, chunk, indent, newline, mark
):
    monkeypatch.setattr(scanning, "_CHUNK", chunk)
    text = "\n \n" + json.dumps(VALUES, indent=indent, ensure_ascii=False) + "\n"
    path = tmp_path / "list.json"
    path.write_bytes((mark + text).replace("\n", newline).encode())
    found = scanned(path)
    assert [value for _, value in found] == VALUES
    lines = [int(location.rpartition(":")[2]) for location, _ in found]
    assert lines == ([3] * 5 if indent is None else expected_lines(text))


def expected_lines(text: str) -> list[int]:
    """Lines on which an element of an indented list begins: two blanks, then a brace."""
    return [number for number, line in enumerate(text.split("\n"), 1) if line.startswith("  {")]


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_lines_are_read_whatever_the_chunk_and_ending(tmp_path, monkeypatch, chunk, ending, last):
    monkeypatch.setattr(scanning, "_CHUNK", chunk)
    lines = [json.dumps(value, ensure_ascii=False) for value in VALUES]
    lines.insert(2, "")
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\xef\xbb\xbf" + (ending.join(lines) + last).encode())
    assert scanned(path) == [
        (f"{path}:{number}", value) for number, value in zip((1, 2, 4, 5, 6), VALUES, strict=True)
    ]


def test_a_bad_line_does_not_hide_the_next(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": "secret\n{"a": 3}')
    (_, first), (_, second), (_, third) = scanned(path)
    assert (first, third) == ({"a": 1}, {"a": 3})
    assert isinstance(second, RecordError)
    assert str(second).startswith(f"{path}:2: not JSON")
    assert "secret" not in str(second)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 1, "empty"),
        (" \n \n", 3, "empty"),
        ("id,text\n", 1, "expected a JSON list"),
        ('[{"a": 1}\n{"a": 2}]', 2, "expected ',' or ']'"),
        ('[\n{"a": 1},\n]', 3, "not JSON"),
        ('[\n{"a": 1},\n{"a": [\n1,,2]}]', 4, "the record that begins on line 3 is not JSON"),
        ('[\n{"a": 1}\n', 3, "expected ',' or ']'"),
        ('[\n{"a": "secret', 2, "Unterminated string"),
        ('[{"a": 1}]\n\n[]', 3, "nothing behind the end"),
        ('[\n{"a": 1, "a": 2}]', 2, "a key occurs twice"),
        ('[\n{"a": NaN}]', 2, "NaN is not a JSON value"),
        ("[\n" + "[" * 10_000, 2, "nested too deeply"),
        ("[\n" + "9" * 5_000 + "]", 2, "not JSON that can be read"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path, text, line, problem):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(RecordError, match="^[^\n]*$") as caught:
        scanned(path)
    assert caught.value.location == f"{path}:{line}"
    assert problem in caught.value.problem
    assert "secret" not in str(caught.value)


def test_other_encodings_are_refused_with_their_line(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes('[{"a": "x"},\n{"a": "é"}]'.encode("latin-1"))
    with pytest.raises(RecordError, match="UTF-8") as caught:
        scanned(path)
    assert caught.value.location == f"{path}:2"
    path.write_bytes("[{}]".encode("utf-16"))
    with pytest.raises(RecordError, match="UTF-8"):
        scanned(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(JSON, max_size=5), st.integers(1, 9))
def test_any_list_is_read_as_the_standard_parser_reads_it(tmp_path_factory, values, chunk):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "_CHUNK", chunk)
        assert [value for _, value in scanned(path)] == values


def test_a_document_that_is_not_json_gives_its_error():
    assert parse_json('{"a": [1]}', "f:1") == {"a": [1]}
    error = parse_json("secret", "f:1")
    assert isinstance(error, RecordError)
    assert (error.location, error.field) == ("f:1", "")
    assert "secret" not in str(error)


@pytest.mark.parametrize("broken", ['{"a": 1,, "b": 2}', '{"a": tru}', '{"a" 1}', '{"a": "x\ny"}'])
def test_a_broken_record_of_a_long_list_is_refused_where_it_stands(tmp_path, broken):
    path = tmp_path / "broken.json"
    element = json.dumps({"conversations": "x" * 1000})
    path.write_text("[\n" + broken + "," + ",\n".join([element] * 10_000) + "]")
    tracemalloc.start()
    with pytest.raises(RecordError, match="the record that begins on line 2 is not JSON"):
        scanned(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def test_a_long_list_is_never_in_memory_as_a_whole(tmp_path):
    path = tmp_path / "long.json"
    element = json.dumps({"conversations": "x" * 1000})
    path.write_text("[" + ",\n".join([element] * 10_000) + "]")
    tracemalloc.start()
    count = sum(1 for _ in scan_json(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10_000
    assert peak < path.stat().st_size
