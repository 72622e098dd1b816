"""Records in array_record: one file, or a folder that TFDS prepared.

TFDS's own reader imports any module that ``features.json`` names, and believes
``dataset_info.json`` about where the shards are and how many entries they have. A folder may come
from others or be damaged, so here both are read as mere JSON and checked against the shards.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medcare_jax.data.scanning import RecordError, parse_json

__all__ = ["INFO_FILE", "Entries", "open_array_record", "open_prepared"]

INFO_FILE = "dataset_info.json"

_FEATURES_FILE = "features.json"
_FEATURES = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
_TEXT = "tensorflow_datasets.core.features.text_feature.Text"
_FORMAT = "array_record"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # TFDS's own
# What a template may be made of: nothing that leads out of the folder or that cannot be filled.
_NAME = re.compile(
    r"([\w.-]|\{(DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\})+", re.ASCII
)
_ANEW = "prepare it anew"


class Entries:
    """The JSON documents of array_record files by number."""

    def __init__(self, entries: Sequence[bytes], unpack: Callable[[bytes], Any]) -> None:
        """Keeps the entries, and what makes a document of each."""
        self._entries, self._unpack = entries, unpack

    def __len__(self) -> int:
        return len(self._entries)

    def value(self, number: int, location: str) -> Any | RecordError:
        """Returns the JSON value of an entry, or the error that it deserves."""
        try:
            document = self._unpack(self._entries[number])
        except Exception as error:  # array_record and TFDS raise many kinds, some with the text
            problem = f"expected an entry, got a damaged one ({type(error).__name__}); {_ANEW}"
            return RecordError(location, "", problem)
        if not isinstance(document, bytes):
            problem = f"expected a text, got {type(document).__name__}; {_ANEW}"
            return RecordError(location, "", problem)
        try:
            return parse_json(document.decode(), location)
        except UnicodeDecodeError:
            return RecordError(location, "", "expected UTF-8, got other bytes")


def open_array_record(path: Path) -> Entries:
    """Returns the entries of one file.

    Raises:
      RecordError: It is damaged.
    """
    _count_entries(path)
    return Entries(_read([path]), lambda document: document)


def open_prepared(path: Path) -> Entries:
    """Returns the entries of one split: ``folder/split``, or the folder if it has but one.

    Raises:
      RecordError: A file of the folder is missing, damaged or not what TFDS writes for one text
        feature, or a shard has another number of entries than it should.
      FileNotFoundError: No such folder or split.
    """
    folder, split = (path, "") if (path / INFO_FILE).is_file() else (path.parent, path.name)
    if not (folder / INFO_FILE).is_file():
        raise FileNotFoundError(f"expected {INFO_FILE} of a TFDS data set in {path}, found none")
    name = _feature_name(folder / _FEATURES_FILE)
    shards = _shards(folder, split)
    for shard, expected in shards:
        if (found := _count_entries(shard)) != expected:
            problem = f"expected {expected} entries as {INFO_FILE} says, got {found}"
            raise _refusal(shard, problem)
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({name: tfds.features.Text()})
    return Entries(
        _read([shard for shard, _ in shards]),
        lambda entry: features.deserialize_example_np(entry)[name],
    )


def _read(paths: Sequence[Path]) -> Sequence[bytes]:
    """Random access to the entries of files."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    entries: Sequence[bytes] = ArrayRecordDataSource([str(path) for path in paths])
    return entries


def _refusal(path: Path, problem: str) -> RecordError:
    """What is wrong with a file as a whole."""
    return RecordError(f"{path}:1", "", f"{problem}; {_ANEW}")


def _count_entries(path: Path) -> int:
    """How many entries a file has."""
    if not path.is_file():
        raise _refusal(path, "expected a whole array_record file, found none")
    try:
        return len(_read([path]))
    except Exception:  # RuntimeError of many causes
        problem = "expected a whole array_record file, got a damaged one"
        raise _refusal(path, problem) from None


def _json_of(path: Path) -> Any:
    """What a JSON file of the folder holds."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"), "")
    except FileNotFoundError:
        raise _refusal(path, "expected a JSON file, found none") from None
    except UnicodeDecodeError:
        raise _refusal(path, "expected UTF-8, got other bytes") from None
    if isinstance(value, RecordError):
        raise _refusal(path, value.problem)
    return value


def _feature_name(path: Path) -> str:
    """The name of the one text feature that entries have."""
    content = _json_of(path)
    try:
        kinds = {k: v["pythonClassName"] for k, v in content["featuresDict"]["features"].items()}
        outer = content["pythonClassName"]
    except (AttributeError, KeyError, TypeError):
        raise _refusal(path, "expected what TFDS writes, got another layout") from None
    if len(kinds) != 1:
        raise _refusal(path, f"expected one text feature, got {len(kinds)} features")
    ((name, kind),) = kinds.items()
    if (outer, kind) != (_FEATURES, _TEXT):
        raise _refusal(path, "expected one text feature, got another kind")
    return str(name)


def _shards(folder: Path, split: str) -> list[tuple[Path, int]]:
    """The files of a split, each with the number of its entries; "" is the only split."""
    path = folder / INFO_FILE
    dataset, splits = _splits(path)
    if not split and len(splits) == 1:
        (split,) = splits
    if split not in splits:
        raise FileNotFoundError(f"expected {folder}/SPLIT with SPLIT one of {sorted(splits)}")
    template, counts = splits[split]
    if not counts:
        raise _refusal(path, f"expected a shard of {split}, got none")
    if not all(map(_NAME.fullmatch, (dataset, split, template))):
        raise _refusal(path, "expected names and a filepathTemplate of files in this folder")
    import tensorflow_datasets as tfds

    names = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        template=template,
        dataset_name=dataset,
        split=split,
        filetype_suffix=_FORMAT,
    )
    return list(zip(map(Path, names.sharded_filepaths(len(counts))), counts, strict=True))


def _splits(path: Path) -> tuple[str, dict[str, tuple[str, list[int]]]]:
    """The name of the data set; by split the template of its files and what each file counts."""
    info = _json_of(path)
    try:
        form, dataset = info["fileFormat"], str(info["name"])
        splits = {
            str(each["name"]): (
                str(each.get("filepathTemplate") or _TEMPLATE),
                [int(count) for count in each.get("shardLengths", [])],
            )
            for each in info["splits"]
        }
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise _refusal(path, "expected what TFDS writes, got another layout") from None
    if form != _FORMAT:
        raise _refusal(path, f"expected fileFormat {_FORMAT}, got another")
    return dataset, splits
