import copy
import json
import pathlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcare_jax.data.records import Record, RecordError, Turn, open_records, parse_record

GOOD = {
    "id": "ki-1",
    "conversations": [
        {"from": "human", "value": "Is warfarin safe with clarithromycin?"},
        {"from": "gpt", "value": "No."},
    ],
    "eval": {"answer": "B", "answer_idx": [1]},
}


def changed(**changes: object) -> dict:
    return {**copy.deepcopy(GOOD), **changes}


def turns(*pairs: tuple[str, object], key: str = "from") -> list[dict]:
    return [{key: role, "value": text} for role, text in pairs]


def test_a_record_is_read_whole():
    assert parse_record(GOOD, "f.json:2") == Record(
        id="ki-1",
        turns=(
            Turn("human", "Is warfarin safe with clarithromycin?"),
            Turn("gpt", "No."),
        ),
        evaluation={"answer": "B", "answer_idx": [1]},
        location="f.json:2",
    )


def test_other_names_of_the_same_are_accepted():
    roles = turns(("system", "Be brief."), ("user", "Fever?"), ("assistant", "No."), key="role")
    record = parse_record({"id": 7, "conversations": roles, "source": "x"}, "f.json:2")
    assert [turn.role for turn in record.turns] == ["system", "human", "gpt"]
    assert (record.id, record.evaluation) == ("7", None)
    messages = [{"role": "user", "content": "Fever?"}, {"role": "assistant", "content": "No."}]
    assert parse_record({"messages": messages}, "f:1").turns == record.turns[1:]


def test_a_record_without_id_is_named_by_its_place():
    item = changed(id=None, eval=None)
    assert parse_record(item, "f.json:2").id == "f.json:2"


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ([], ""),
        ("text", ""),
        (None, ""),
        ({"id": "1"}, "conversations"),
        (changed(messages=[]), "conversations"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "value": "a"}]}, "messages[0].value"),
        (changed(conversations={}), "conversations"),
        (changed(conversations=[]), "conversations"),
        (changed(conversations=turns(("human", "a"))), "conversations"),
        (changed(conversations=turns(("gpt", "a"))), "conversations"),
        (changed(conversations=turns(("gpt", "a"), ("human", "b"))), "conversations"),
        (changed(conversations=["a"]), "conversations[0]"),
        (changed(conversations=[{"value": "a"}]), "conversations[0].from"),
        (
            changed(conversations=[{"from": "gpt", "role": "gpt", "value": "a"}]),
            "conversations[0].from",
        ),
        (changed(conversations=turns(("human", "a"), ("doctor", "b"))), "conversations[1].from"),
        (changed(conversations=turns(("Human", "a"), key="role")), "conversations[0].role"),
        (changed(conversations=turns((["human"], "a"))), "conversations[0].from"),
        (changed(conversations=turns(("human", "a"), ("system", "b"))), "conversations[1].from"),
        (changed(conversations=turns(("human", "a"), ("gpt", " \n"))), "conversations[1].value"),
        (changed(conversations=turns(("human", ""), ("gpt", "b"))), "conversations[0].value"),
        (changed(conversations=turns(("human", 7), ("gpt", "b"))), "conversations[0].value"),
        (changed(conversations=[{"from": "human"}]), "conversations[0].value"),
        (changed(conversations=turns(("human", "a\x00"))), "conversations[0].value"),
        (changed(conversations=turns(("human", "a\ud800"))), "conversations[0].value"),
        (changed(id=True), "id"),
        (changed(id=1.5), "id"),
        (changed(id=""), "id"),
        (changed(id="a\udfff"), "id"),
        (changed(eval="B"), "eval"),
        (changed(eval={"answer": [{"\ud800": 1}]}), "eval"),
        (changed(eval={"answer": "\x00"}), "eval"),
    ],
)
def test_a_bad_record_is_refused_by_place_and_field(item, field):
    with pytest.raises(RecordError) as caught:
        parse_record(item, "f.json:2")
    assert (caught.value.location, caught.value.field) == ("f.json:2", field)
    assert str(caught.value).startswith(f"f.json:2: {field}" if field else "f.json:2: expected")


def test_a_backslash_is_not_a_nul():
    assert parse_record(changed(eval={"answer": r"\u0000"}), "f:1").evaluation


def test_an_error_never_quotes_the_text():
    for item in (
        changed(conversations=turns(("secret", "secret"))),
        changed(conversations=turns(("human", "secret\x00"))),
        changed(eval="secret"),
        changed(id="secret\x00"),
    ):
        with pytest.raises(RecordError) as caught:
            parse_record(item, "f.json:2")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("layout", ["list", "lines"])
def test_stop_raises_and_skip_keeps_count(tmp_path, layout):
    items = [changed(id="a"), changed(id="b", conversations=7), changed(id="c"), changed(id="a")]
    lines = [json.dumps(item) for item in items]
    path = tmp_path / "train"
    path.write_text(
        "[\n" + ",\n".join(lines) + "\n]" if layout == "list" else "\n" + "\n".join(lines)
    )
    with pytest.raises(RecordError, match=re.escape(f"{path}:3: conversations: ")):
        open_records(path)
    source = open_records(path, on_bad_record="skip")
    assert [record.id for record in source] == ["a", "c"]
    assert [record.location for record in source] == [f"{path}:2", f"{path}:4"]
    assert [(error.location, error.field) for error in source.errors] == [
        (f"{path}:3", "conversations"),
        (f"{path}:5", "id"),
    ]
    assert f"{path}:2" in source.errors[1].problem
    assert (source[-1].id, [record.id for record in source[:1]]) == ("c", ["a"])


def test_a_file_without_a_good_record_is_refused(tmp_path):
    path = tmp_path / "train.json"
    path.write_text("[]")
    with pytest.raises(RecordError, match="no good record, 0 bad ones"):
        open_records(path)
    path.write_text("[{}, {}]")
    with pytest.raises(RecordError, match="no good record, 2 bad ones"):
        open_records(path, on_bad_record="skip")


def test_a_missing_file_and_an_unknown_policy_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_records(tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError, match="TFDS"):
        open_records(tmp_path)
    with pytest.raises(ValueError, match="'stop' or 'skip', got 'ignore'"):
        open_records(tmp_path, on_bad_record="ignore")


def test_an_array_record_is_read_by_number(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    path = tmp_path / "train.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for document in (changed(id="ä"), "broken", changed(id="b")):
        is_text = isinstance(document, str)
        writer.write((document if is_text else json.dumps(document, ensure_ascii=False)).encode())
    writer.write(b"\xff")
    writer.close()
    source = open_records(path, on_bad_record="skip")
    assert [(record.id, record.location) for record in source] == [
        ("ä", f"{path}:1"),
        ("b", f"{path}:3"),
    ]
    assert source[1].turns == parse_record(GOOD, "").turns
    assert [error.location for error in source.errors] == [f"{path}:2", f"{path}:4"]
    with pytest.raises(RecordError, match=":2: not JSON"):
        open_records(path)


def test_a_prepared_folder_reads_as_its_text_files(tmp_path):
    from medcare_jax.data.sources import prepare

    for name in ("train", "test"):
        items = [changed(id=f"{name}-{number}") for number in range(3)]
        (tmp_path / f"{name}.json").write_text(json.dumps(items))
    files = {name: [tmp_path / f"{name}.json"] for name in ("train", "test")}
    folder = prepare(files, tmp_path / "prepared")
    for name in files:
        texts, stored = open_records(files[name][0]), open_records(folder / name)
        assert [(record.id, record.turns) for record in stored] == [
            (record.id, record.turns) for record in texts
        ]
        assert stored[2].location == f"{folder / name}:3"
    with pytest.raises(FileNotFoundError, match=r"one of \['test', 'train'\]"):
        open_records(folder)
    only = prepare({"train": files["train"]}, tmp_path / "only")
    assert len(open_records(only)) == 3


def test_the_real_files_are_good(shared):
    counts = {}
    for path in sorted((shared / "data").rglob("*.json")):
        if path.name != "CBLUE_structured.json":  # gold of a task, not records
            counts[f"{path.parent.name}/{path.name}"] = len(open_records(path))
    assert counts.pop("1-stage/train.json") == 5448
    assert counts.pop("2-stage/train.json") == 1492
    assert sum(counts.values()) == 2138


ODD = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
PATHS: list[list] = [
    [],
    ["id"],
    ["eval"],
    ["conversations"],
    ["conversations", 0],
    ["conversations", 1, "from"],
    ["conversations", 1, "value"],
]


def opened(path: pathlib.Path) -> None:
    """Opens a file; nothing but a record or an error with file and line may come out."""
    outcome: object
    try:
        outcome = open_records(path)[0]
    except RecordError as error:
        outcome = error
    if isinstance(outcome, RecordError):
        assert re.fullmatch(re.escape(str(path)) + r":\d+", outcome.location)
        assert str(outcome).startswith(f"{outcome.location}: ")
    else:
        assert isinstance(outcome, Record)


@settings(deadline=None)
@given(st.sampled_from(PATHS), ODD)
def test_odd_values_give_a_record_or_an_error_with_its_line(tmp_path_factory, where, odd):
    items = [changed(id="first"), changed(id="second")]
    inner: object = items
    for key in [1, *where][:-1]:
        inner = inner[key]
    inner[[1, *where][-1]] = odd
    path = tmp_path_factory.getbasetemp() / "odd.json"
    path.write_text(json.dumps(items, indent=1), encoding="utf-8")
    opened(path)


@settings(deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["delete", "insert", "flip"]),
    st.binary(min_size=1, max_size=3),
    st.booleans(),
)
def test_damaged_bytes_give_a_record_or_an_error_with_its_line(
    tmp_path_factory, place, kind, some, is_list
):
    lines = [json.dumps(changed(id=name, source="漢字")) for name in "ab"]
    data = ("[" + ",\n".join(lines) + "]" if is_list else "\n".join(lines)).encode()
    place %= len(data)
    keep = place + (0 if kind == "insert" else len(some))
    data = data[:place] + (b"" if kind == "delete" else some) + data[keep:]
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(data)
    opened(path)


def test_records_on_one_line_have_ids_of_their_own(tmp_path):
    path = tmp_path / "line.json"
    path.write_text(json.dumps([changed(id=name) for name in "aba"]), encoding="utf-8")
    with pytest.raises(RecordError, match=r"line\.json:1: id: expected an id of its own"):
        open_records(path)
    bare = {"conversations": GOOD["conversations"]}
    path.write_text(json.dumps([bare, bare, bare]), encoding="utf-8")
    assert [r.id for r in open_records(path)] == [f"{path}:1", f"{path}:1#2", f"{path}:1#3"]
