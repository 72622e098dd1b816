"""Prepared folders that were damaged, cut or made by others: refused by file, never misread."""

import json
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from medcare_jax.data.records import RecordError, open_records
from medcare_jax.data.sources import prepare

SHARD = "med_care_data-train.array_record-00000-of-00001"
TEXT = "tensorflow_datasets.core.features.text_feature.Text"


def document(name: str) -> dict:
    turns = [{"from": "human", "value": "Fever?"}, {"from": "gpt", "value": "private"}]
    return {"id": name, "conversations": turns}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Fifty records in one shard."""
    home = tmp_path_factory.mktemp("prepared")
    (home / "a.json").write_text(json.dumps([document(f"{n}") for n in range(50)]))
    return prepare({"train": [home / "a.json"]}, home / "out")


@pytest.fixture
def folder(prepared, tmp_path):
    """A copy to damage."""
    return shutil.copytree(prepared, tmp_path / "copy")


def change(path, **fields):
    """Puts fields into a JSON object; for dataset_info.json into its only split."""
    content = json.loads(path.read_text())
    (content["splits"][0] if "splits" in content else content).update(fields)
    path.write_text(json.dumps(content))


def refusal(folder) -> str:
    """What is said of a folder, which quotes nothing."""
    with pytest.raises(RecordError) as caught:
        open_records(folder)
    assert "private" not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


def build(home, features, rows):
    """What somebody else prepared with TFDS."""

    class Others(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": iter(enumerate(rows))}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Others(data_dir=home, file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def test_what_others_prepared_is_read(tmp_path):
    features = {"dialogue": tfds.features.Text(doc="one item")}
    rows = [{"dialogue": json.dumps(document(name))} for name in "abc"]
    source = open_records(build(tmp_path, features, rows) / "train")
    assert sorted(record.id for record in source) == ["a", "b", "c"]


def test_one_text_is_asked_for(tmp_path):
    text = tfds.features.Text
    rows = [{"alt": json.dumps(document("wrong")), "record": json.dumps(document("right"))}]
    said = refusal(build(tmp_path / "two", {"alt": text(), "record": text()}, rows))
    assert "features.json:1: expected one text feature, got 2 features" in said
    said = refusal(build(tmp_path / "number", {"n": tfds.features.Scalar(np.int64)}, [{"n": 9}]))
    assert "features.json:1: expected one text feature, got another kind" in said


def test_a_number_in_place_of_the_text_is_refused(tmp_path):
    folder = build(tmp_path, {"n": tfds.features.Scalar(np.int64)}, [{"n": 1_500_000_000}])
    names = {"features": {"n": {"pythonClassName": TEXT, "text": {}}}}
    change(folder / "features.json", featuresDict=names)
    assert "1.0.0:1: expected a text, got int" in refusal(folder)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
def test_no_module_that_a_folder_names_is_imported(folder, key):
    sys.modules.pop("this", None)
    change(folder / "features.json", **{key: "this.Zen"})
    if key == "pythonClassName":
        assert "features.json:1: expected one text feature" in refusal(folder)
    else:  # protobuf's other name of the same field, which counts for nothing here
        assert len(open_records(folder)) == 50
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"shardLengths": ["40"]}, f"{SHARD}:1: expected 40 entries .* got 50; prepare"),
        ({"shardLengths": ["60"]}, f"{SHARD}:1: expected 60 entries .* got 50; prepare"),
        ({"shardLengths": ["25", "25"]}, "00000-of-00002:1: expected a whole array_record file"),
        ({"shardLengths": []}, "dataset_info.json:1: expected a shard"),
        ({"shardLengths": [None]}, "dataset_info.json:1: expected what TFDS writes"),
        ({"shardLengths": 50}, "dataset_info.json:1: expected what TFDS writes"),
        ({"filepathTemplate": 50}, "/50:1: expected a whole array_record file"),
        ({"filepathTemplate": "{NOTHING}"}, "dataset_info.json:1: .*filepathTemplate"),
        ({"filepathTemplate": "{SPLIT:>9}"}, "dataset_info.json:1: .*filepathTemplate"),
        (
            {"filepathTemplate": "../copy/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"},
            "dataset_info.json:1: .*filepathTemplate",
        ),
    ],
)
def test_shards_are_those_of_the_folder_and_whole(folder, fields, said):
    change(folder / "dataset_info.json", **fields)
    assert re.search(said, refusal(folder))


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        (SHARD, -200, "expected a whole array_record file, got .*; prepare"),
        (SHARD, 1000, "expected a whole array_record file, got .*; prepare"),
        (SHARD, 0, "expected a whole array_record file, got .*; prepare"),
        ("dataset_info.json", -40, "not JSON.*; prepare"),
        ("features.json", -40, "not JSON.*; prepare"),
    ],
)
def test_a_file_that_was_cut_is_named(folder, name, size, said):
    path = folder / name
    path.write_bytes(path.read_bytes()[:size])
    assert re.search(re.escape(f"{path}:1: ") + said, refusal(folder))
    path.unlink()
    if name != "dataset_info.json":  # without it, it is no prepared folder
        assert refusal(folder).startswith(f"{path}:1: expected ")


def test_a_name_that_leads_out_of_the_folder_is_refused(folder):
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace('"med_care_data"', '"../copy/med_care_data"'))
    assert "dataset_info.json:1: expected names" in refusal(folder)


def test_another_file_format_is_refused(folder):
    path = folder / "dataset_info.json"
    content = path.read_text()
    path.write_text(content.replace('"50"', "1e999"))  # an infinity
    assert "dataset_info.json:1: expected what TFDS writes" in refusal(folder)
    path.write_text(content.replace('"array_record"', '"tfrecord"'))
    assert "dataset_info.json:1: expected fileFormat array_record" in refusal(folder)
    path.write_text("[]")
    assert "dataset_info.json:1: expected what TFDS writes" in refusal(folder)
    path.write_bytes(b"\xff")
    assert "dataset_info.json:1: expected UTF-8" in refusal(folder)


def test_damaged_entries_are_named_or_skipped(folder):
    path = folder / SHARD
    content = bytearray(path.read_bytes())
    content[200] ^= 4
    path.write_bytes(content)
    alone = shutil.copy(path, folder.parent / "alone.array_record")
    for each in (folder / "train", alone):
        assert re.search(r":\d+: expected an entry, got a damaged one", refusal(each))
        source = open_records(each, on_bad_record="skip") if each != alone else None
        assert source is None or 0 < len(source) < 50


def test_a_file_that_is_no_array_record_is_refused(tmp_path):
    path = tmp_path / "x.array_record"
    path.write_text("private")
    assert refusal(path).startswith(f"{path}:1: expected a whole array_record file, got")
