"""Text files prepared into array_record: nothing lost, nothing half-written, no TensorFlow."""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import pytest
import tensorflow_datasets as tfds

from medcare_jax.data.records import open_records
from medcare_jax.data.scanning import RecordError
from medcare_jax.data.sources import MedCareData, prepare


def dialogue(number, **more):
    turns = [{"from": "human", "value": f"Frage {number}: Fieber?"}, {"from": "gpt", "value": "是"}]
    return {"id": f"item-{number}", "conversations": turns, **more}


def write_list(path, items):
    path.write_text(json.dumps(items, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def write_lines(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    """Two layouts in one split; test items with `eval` and a key that we do not know."""
    gold = {"answer": "ja", "options": ["ja", "nein"], "weight": 0.1, "sample_id": "é"}
    return {
        "train": [
            write_list(tmp_path / "a.json", [dialogue(n) for n in range(7)]),
            write_lines(tmp_path / "b.jsonl", [dialogue(n) for n in range(7, 11)]),
        ],
        "test": [write_list(tmp_path / "t.json", [dialogue(0, eval=gold, extra=[1, None, {}])])],
    }


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def items_of(folder, split):
    source = tfds.builder_from_directory(folder).as_data_source(split)
    return [json.loads(source[number]["record"]) for number in range(len(source))]


def test_every_item_comes_back_whole_and_in_order(files, tmp_path):
    folder = prepare(files, tmp_path / "prepared")
    assert items_of(folder, "train") == [dialogue(n) for n in range(11)]
    assert items_of(folder, "test") == json.loads(files["test"][0].read_text(encoding="utf-8"))


def test_it_reads_as_the_text_does(files, tmp_path):
    folder = prepare(files, tmp_path / "prepared")
    text = [*open_records(files["train"][0]), *open_records(files["train"][1])]
    prepared = open_records(folder / "train")
    assert [(r.id, r.turns, r.evaluation) for r in prepared] == [
        (r.id, r.turns, r.evaluation) for r in text
    ]
    assert open_records(folder / "test")[0].evaluation == {
        "answer": "ja",
        "options": ["ja", "nein"],
        "weight": 0.1,
        "sample_id": "é",
    }


def test_the_same_files_give_the_same_bytes(files, tmp_path):
    first = digests(prepare(files, tmp_path / "first"))
    assert first == digests(prepare(files, tmp_path / "deeper" / "second"))
    write_lines(files["train"][1], [dialogue(99)])
    assert first != digests(prepare(files, tmp_path / "third"))


def test_shards_keep_the_order(files, tmp_path):
    folder = prepare({"train": files["train"]}, tmp_path / "prepared", shards=3)
    assert len(list(folder.glob("*.array_record*"))) == 3
    assert items_of(folder, "train") == [dialogue(n) for n in range(11)]


def test_records_without_an_id_are_no_twins(tmp_path):
    nameless = [{"conversations": dialogue(n)["conversations"]} for n in range(3)]
    paths = [write_lines(tmp_path / name, nameless) for name in ("a.jsonl", "b.jsonl")]
    folder = prepare({"train": paths}, tmp_path / "prepared")
    assert len(open_records(folder)) == 6


def test_no_tensorflow_is_imported(files, tmp_path):
    program = """
import sys
import tempfile
from medcare_jax.data.sources import prepare
import tensorflow_datasets as tfds
folder = prepare({"train": [sys.argv[1]]}, sys.argv[2])
source = tfds.builder_from_directory(folder).as_data_source("train")
assert b"item-5" in source[5]["record"]
print("tensorflow" in sys.modules, len(source))
"""
    command = [sys.executable, "-W", "error", "-c", program, str(files["train"][0])]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [*command, str(tmp_path / "prepared")], capture_output=True, text=True, cwd=root
    )
    assert done.stdout == "False 7\n", done.stderr


BAD_RECORDS = {
    "no answer": ({"conversations": dialogue(1)["conversations"][:1]}, "conversations"),
    "an id twice": (dialogue(2), "id"),
    "an infinite number": (dialogue(1, score=float("1e999")), "JSON"),
    "half a character": (dialogue(1, note="Herr Secret \ud800"), "JSON"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_named_and_leaves_nothing_behind(name, tmp_path):
    record, problem = BAD_RECORDS[name]
    good = write_lines(tmp_path / "good.jsonl", [dialogue(n) for n in range(2, 5)])
    line = json.dumps(record).replace("Infinity", "1e999")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(dialogue(9)) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(RecordError, match=problem) as caught:
        prepare({"train": [good, bad]}, tmp_path / "prepared")
    assert "bad.jsonl:3" in str(caught.value)
    assert "Secret" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "good.jsonl"]


def test_an_id_twice_in_a_list_on_one_line_is_refused_as_in_training(tmp_path):
    records = [dialogue(1), dialogue(2), dialogue(1)]
    path = tmp_path / "line.json"
    path.write_text(json.dumps(records))
    with pytest.raises(RecordError, match=r"line\.json:1: id: expected an id of its own"):
        prepare({"train": [path]}, tmp_path / "prepared")
    nameless = [{"conversations": each["conversations"]} for each in records]
    path.write_text(json.dumps(nameless))
    assert len(open_records(prepare({"train": [path]}, tmp_path / "prepared"))) == 3


def test_a_kill_leaves_no_folder(files, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tfds.core.DatasetInfo, "write_to_directory", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(files, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()
    monkeypatch.undo()
    prepare(files, tmp_path / "prepared")


def test_an_empty_file_is_refused(files, tmp_path):
    empty = write_list(tmp_path / "empty.json", [])
    with pytest.raises(RecordError, match=r"empty.json:1: expected at least one record"):
        prepare({"train": [*files["train"], empty]}, tmp_path / "prepared")


def test_a_folder_that_holds_something_is_left_alone(files, tmp_path):
    folder = prepare(files, tmp_path / "prepared")
    before = digests(folder)
    with pytest.raises(FileExistsError, match="another folder"):
        prepare({"train": files["train"]}, folder)
    assert digests(folder) == before
    (tmp_path / "empty").mkdir()
    prepare(files, tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda files: {}, ValueError, "at least one split"),
        (lambda files: {"train": []}, ValueError, "'train', got none"),
        (lambda files: {"all": files["train"]}, ValueError, "'all'"),
        (lambda files: {"1-stage": files["train"]}, ValueError, "'1-stage'"),
        (lambda files: {"train": [*files["train"], files["train"][0]]}, ValueError, "twice"),
        (lambda files: {"train": ["gone.json"]}, FileNotFoundError, "gone.json"),
    ],
)
def test_what_cannot_be_prepared_is_refused(files, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        prepare(change(files), tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("shards", "message"), [(0, "at least 1, got 0"), (2, "'test' has 1 records.* 2 shards")]
)
def test_a_number_of_shards_that_cannot_be_is_refused(files, tmp_path, shards, message):
    with pytest.raises(ValueError, match=message):
        prepare(files, tmp_path / "prepared", shards=shards)
    assert not (tmp_path / "prepared").exists()


def test_it_is_an_ordinary_tfds_builder(files, tmp_path):
    builder = MedCareData(files=files, data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 11,
        "test": 1,
    }
    assert json.loads(builder.as_data_source("train")[10]["record"]) == dialogue(10)


def test_no_temporary_folder_stays(files, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    prepare(files, tmp_path / "prepared")
    assert list((tmp_path / "temporary").iterdir()) == []
