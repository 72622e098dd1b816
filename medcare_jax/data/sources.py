"""JSON and JSON Lines files, prepared once into array_record for training on many hosts.

A text file has to be read from its start; an array_record gives any host any record at once. TFDS
writes and reads it without TensorFlow.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from medcare_jax.data.records import parse_record, with_own_id
from medcare_jax.data.scanning import RecordError, scan_json

__all__ = ["MedCareData", "prepare"]

Files = Mapping[str, Sequence[str | os.PathLike[str]]]


class _OwnInfo(tfds.core.DatasetInfo):
    """What TFDS notes of a data set that no server knows."""

    def initialize_from_bucket(self) -> None:
        """Asks for nothing; TFDS would leave an empty folder in the temporary one."""


class MedCareData(tfds.core.GeneratorBasedBuilder):
    """TFDS data set of dialogues with one feature: ``record``, the UTF-8 JSON of an item.

    The JSON is whole: keys that training does not read are kept. Records stay in the order of the
    files. Use :func:`prepare`, which also makes the folder appear whole or not at all.

    Attributes:
      files: Text files by split.
      shards: Files that each split is cut into, or None.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Looking for checksums needs importlib_resources, which TFDS 4.9.10
    # does not ask pip for on today's Pythons.
    url_infos = None

    def __init__(self, *, files: Files, shards: int | None = None, **kwargs: Any) -> None:
        self.files, self.shards = files, shards
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        """One feature; shuffling is the training pipeline's business."""
        features = tfds.features.FeaturesDict({"record": tfds.features.Text()})
        return _OwnInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Any]]]:
        """One generator a split."""
        del dl_manager
        return {split: self._generate_examples(split) for split in self.files}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
        """Numbered records of all files of a split."""
        number = 0
        for number, document in enumerate(_documents(self.files[split]), start=1):
            yield number, {"record": document}
        if self.shards is not None and number < self.shards:
            raise ValueError(
                f"Split {split!r} has {number} records, too few for {self.shards} shards."
            )


def prepare(
    files: Files, folder: str | os.PathLike[str], *, shards: int | None = None
) -> pathlib.Path:
    """Checks text files of dialogues and writes them as one folder of array_record files.

    The same files give the same bytes. The folder appears when all is written: after a failure
    or a kill there is none.

    Args:
      files: JSON or JSON Lines files by split, as in ``{"train": ["a.json", "b.jsonl"]}``; the
        records of a split keep this order.
      folder: Where to; must not exist, or be empty. ``open_records`` reads it.
      shards: Files that each split is cut into; None lets TFDS choose by size (one, if small).

    Returns:
      The folder. ``tfds.builder_from_directory(folder).as_data_source("train")`` reads it too.

    Raises:
      RecordError: A bad record, or an id that a split has twice.
      FileNotFoundError: An input is not there.
      FileExistsError: Something is in the folder already.
      ValueError: No split, a split without files or with one twice, a name that cannot be, fewer
        than one shard, or more shards than records.
    """
    _check_request(files, shards)
    folder = pathlib.Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} is there already. Give another folder, or delete it to prepare it anew."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.unfinished-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as unfinished:
        builder = MedCareData(files=files, shards=shards, data_dir=unfinished)
        config = tfds.download.DownloadConfig(num_shards=shards)
        with contextlib.redirect_stdout(io.StringIO()):  # it speaks of a download
            builder.download_and_prepare(download_config=config)
        pathlib.Path(builder.data_dir).rename(folder)
    return folder


def _check_request(files: Files, shards: int | None) -> None:
    """Refuses what can be refused before any file is read."""
    if not files:
        raise ValueError("Expected at least one split with files to prepare, got none.")
    if shards is not None and shards < 1:
        raise ValueError(f"shards must be at least 1, got {shards}.")
    for split, paths in files.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", split, re.ASCII) or split == "all":
            raise ValueError(
                f"A split's name must be letters, digits and underscores, and not 'all' (TFDS "
                f"gives that a meaning); got {split!r}."
            )
        if not paths:
            raise ValueError(f"Expected at least one file for split {split!r}, got none.")
        seen: set[pathlib.Path] = set()
        for path in map(pathlib.Path, paths):
            if not path.is_file():
                raise FileNotFoundError(
                    f"Expected a JSON or JSON Lines file for split {split!r} at {path}, found none."
                )
            if path.resolve() in seen:
                raise ValueError(
                    f"{path} is named twice for split {split!r}. To see a file more often, give "
                    "it a weight in the config of the run."
                )
            seen.add(path.resolve())


def _documents(paths: Sequence[str | os.PathLike[str]]) -> Iterator[bytes]:
    """The JSON of each record, checked; an id may be used once."""
    seen: dict[str, str] = {}
    for path in map(pathlib.Path, paths):
        location = f"{path}:1"
        is_empty = True
        for number, (location, item) in enumerate(scan_json(path), 1):
            if isinstance(item, RecordError):
                raise item
            with_own_id(parse_record(item, location), location, number, seen)
            is_empty = False
            yield _document(item, location)
        if is_empty:
            raise RecordError(location, "", "expected at least one record, got none")


def _document(item: dict[str, Any], location: str) -> bytes:
    """The JSON of one item."""
    try:
        return json.dumps(item, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:  # its message may quote the text
        problem = "expected numbers and characters that JSON can hold"
        raise RecordError(location, "", problem) from None
