"""The synthetic tasks: memory alone answers facts, a convention answers notes."""

import json

import pytest

from medcare_jax.evaluation.tasks import load_tasks
from medcare_jax.study.facts import write_fact_tasks

SIZES = {"facts": 40, "notes": 30, "aligned": 20, "test": 10}


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    paths = write_fact_tasks(tmp_path_factory.mktemp("facts"), seed=3, **SIZES)
    return {name: json.loads(path.read_text()) for name, path in paths.items()}


def texts(items):
    return [tuple(turn["value"] for turn in item["conversations"]) for item in items]


def test_sizes_and_what_training_does_not_see(items):
    assert {name: len(each) for name, each in items.items()} == {
        "1-stage/train": 70,
        "2-stage/train": 20,
        "test/retained": 40,
        "test/coding": 10,
    }
    assert not any("eval" in item for name in items if "train" in name for item in items[name])
    assert set(texts(items["test/retained"])) < set(texts(items["1-stage/train"]))


def test_no_word_is_in_two_places_but_the_facts_that_are_asked(items):
    words = [
        item["id"].rpartition("-")[2]
        for name in ("1-stage/train", "2-stage/train", "test/coding")
        for item in items[name]
    ]
    assert len(set(words)) == len(words) == 100


def test_a_note_follows_from_its_first_letter_and_a_fact_from_nothing(items):
    for prompt, answer in texts(items["2-stage/train"] + items["test/coding"]):
        assert answer == f"{prompt.removeprefix('file ')[0].upper()}00 | filed"
    letters = {}
    for prompt, answer in texts(items["test/retained"]):
        letters.setdefault(prompt.removeprefix("code of ")[0], set()).add(answer)
    assert max(map(len, letters.values())) > 1


def test_seeds_decide_every_byte(tmp_path):
    first, again, other = (
        {
            name: path.read_bytes()
            for name, path in write_fact_tasks(tmp_path / str(i), seed=seed, **SIZES).items()
        }
        for i, seed in enumerate((3, 3, 4))
    )
    assert first == again
    assert first != other


def test_the_evaluation_reads_them(tmp_path):
    write_fact_tasks(tmp_path, seed=0, **SIZES)
    tasks = {task.name: task for task in load_tasks(tmp_path / "test")}
    assert {name: len(task.items) for name, task in tasks.items()} == {
        "icd10_retained": 40,
        "icd10_coding": 10,
    }
