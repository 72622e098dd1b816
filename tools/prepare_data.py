"""Prepares training data once: from the hub, your own files for many hosts, or the demo tasks.

python tools/prepare_data.py --input=a.json,b.jsonl --output=DIR [--split=train] [--shards=8]
python tools/prepare_data.py --icd10=DIR [--seed=0]
python tools/prepare_data.py --hub=BlueZeros/MedCareData --output=DIR
"""

import json
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

_INPUT = flags.DEFINE_list("input", [], "JSON or JSON Lines files in MedCareData's layout.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the array_record files of --input.")
_SPLIT = flags.DEFINE_string("split", "train", "Name of the split made from --input.")
_SHARDS = flags.DEFINE_integer("shards", None, "Files the split is cut into; unset: by size.")
_ICD10 = flags.DEFINE_string("icd10", None, "Folder for demo tasks made from ICD-10-CM.")
_HUB = flags.DEFINE_string("hub", None, "Data set of the hub to fetch: ORG/NAME@REVISION.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the demo tasks.")


def main(argv: Sequence[str]) -> None:
    """Does what the flags say, or says on one screen what is wrong with them."""
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only, got {argv[1]!r}. Several files: --input=A,B.")
    ways = [bool(way) for way in (_INPUT.value, _ICD10.value, _HUB.value)]
    if sum(ways) != 1 or bool(_OUTPUT.value) == bool(_ICD10.value):
        raise app.UsageError(
            "Give either --input=FILE[,FILE] or --hub=ORG/NAME, each with --output=DIR, or "
            "--icd10=DIR."
        )
    try:
        if _HUB.value:
            _fetch()
        elif _ICD10.value:
            _write_demo()
        else:
            _prepare_files()
    except (ValueError, OSError) as error:
        sys.exit(f"prepare_data: {error}")


def _prepare_files() -> None:
    """Text files to array_record."""
    import tensorflow_datasets as tfds

    from medcare_jax.data.sources import prepare

    folder = prepare({_SPLIT.value: _INPUT.value}, _OUTPUT.value, shards=_SHARDS.value)
    count = tfds.builder_from_directory(folder).info.splits[_SPLIT.value].num_examples
    print(f"{folder}/{_SPLIT.value}: {count} records. Name it in a config's `files`.")


def _fetch() -> None:
    """A data set of the hub to a folder."""
    from medcare_jax.conversion import hub

    files = hub.fetch_data(_HUB.value, pathlib.Path(_OUTPUT.value))
    for path in files:
        print(path)
    print("Name the training files in a config's `files`, the folder of tests in `evaluation`.")


def _write_demo() -> None:
    """Demo tasks to JSON files."""
    from medcare_jax.data.icd10 import write_icd10_tasks

    for path in write_icd10_tasks(_ICD10.value, seed=_SEED.value).values():
        print(f"{path}: {len(json.loads(path.read_text(encoding='utf-8')))} dialogues")


if __name__ == "__main__":
    app.run(main)
