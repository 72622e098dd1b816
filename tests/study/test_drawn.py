"""Tasks drawn from data in MedCareData's layout: what is taught is asked, nothing else meets."""

import dataclasses
import json

import pytest

from configs import ablation_medcaredata
from medcare_jax.evaluation.tasks import SUFFIXES, load_tasks
from medcare_jax.settings import SettingsError
from medcare_jax.study.drawn import draw_tasks
from medcare_jax.study.settings import Drawn, make_study

LETTERS = "ABCD"


def dialogue(key, prompt, answer):
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"id": key, "conversations": turns}


def question(number):
    options = "\n".join(f"{letter}. {number} of {letter}" for letter in LETTERS)
    prompt = f"question {number}?\n{options}{SUFFIXES['en']}"
    return dialogue(f"ki-exam-{number}", prompt, f"Because.\nThe answer is {LETTERS[number % 4]}.")


def note(stage, number):
    return dialogue(
        f"ar-note-{stage}-{number}", f"note {stage} {number}", f"Disease entity: {number}"
    )


def asked(number):
    facts = {"answer_choices": ["Disease"], "answer": [{"entity": str(number), "type": "Disease"}]}
    return note("test", number) | {"eval": facts | {"sample_id": f"test-{number}"}}


@pytest.fixture
def drawn(tmp_path):
    others = [dialogue(f"ki-other-{i}", "who?", "nobody") for i in range(5)]
    files = {
        "1-stage/train": [*others, *map(question, range(12)), *(note(1, i) for i in range(6))],
        "2-stage/train": [*others, *(note(2, i) for i in range(9))],
        "test/NER": [asked(i) for i in range(8)],
    }
    for name, items in files.items():
        path = tmp_path / "source" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(items))
    return Drawn(
        folder=str(tmp_path / "source"),
        exam="medmcqa",
        exam_ids=("ki-exam-",),
        written="ner",
        written_ids=("ar-note-",),
        taught=7,
        mixed=3,
        aligned=5,
        test=4,
        longest=200,
    )


def read(paths):
    return {name: json.loads(path.read_text()) for name, path in paths.items()}


def test_so_many_of_each_and_only_those_that_are_meant(drawn, tmp_path):
    items = read(draw_tasks(tmp_path / "out", drawn, seed=0))
    assert {name: len(each) for name, each in items.items()} == {
        "1-stage/train": 10,
        "2-stage/train": 5,
        "test/MedMCQA": 7,
        "test/NER": 4,
    }
    sources = [item["id"].rsplit("-", 1)[0] for item in items["1-stage/train"]]
    assert sources == ["ki-exam"] * 7 + ["ar-note-1"] * 3
    assert all(item["id"].startswith("ar-note-2") for item in items["2-stage/train"])


def test_what_is_taught_is_asked_without_the_request_for_the_format(drawn, tmp_path):
    items = read(draw_tasks(tmp_path / "out", drawn, seed=0))
    taught = {item["id"]: item for item in items["1-stage/train"]}
    for item in items["test/MedMCQA"]:
        of_training = taught[item["id"]]["conversations"]
        prompt, gold = (turn["value"] for turn in item["conversations"])
        assert [prompt + SUFFIXES["en"], gold] == [turn["value"] for turn in of_training]
        assert item["eval"]["answer"] == LETTERS[int(item["id"].split("-")[-1]) % 4]
    exam, written = load_tasks(tmp_path / "out" / "test")
    assert (exam.name, written.name) == ("medmcqa", "ner")
    assert {item.id for item in written.items} <= {f"test-{i}" for i in range(8)}


def test_a_seed_decides_every_byte(drawn, tmp_path):
    first, again, other = (
        read(draw_tasks(tmp_path / str(i), drawn, seed=seed)) for i, seed in enumerate((0, 0, 1))
    )
    assert first == again
    assert all(first[name] != other[name] for name in first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taught": 13}, "expected 13 dialogues of ki-exam- with at most 200 .* found 12"),
        ({"longest": 20, "test": 1}, "expected 7 dialogues of ki-exam- with at most 20 "),
        ({"exam_ids": ("ki-other-",), "taught": 5}, "json:1: expected an answer with 'The answer"),
    ],
)
def test_what_cannot_be_drawn_is_said(drawn, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        draw_tasks(tmp_path / "out", dataclasses.replace(drawn, **change), seed=0)
    assert not (tmp_path / "out").exists()


def test_a_test_that_is_not_there_is_said(drawn, tmp_path):
    with pytest.raises(FileNotFoundError, match="no test file of task 'meqsum' in .*test"):
        draw_tasks(tmp_path / "out", dataclasses.replace(drawn, written="meqsum"), seed=0)


def test_the_config_asks_for_a_folder():
    config = ablation_medcaredata.get_config()
    with pytest.raises(SettingsError, match="drawn.folder is empty; name a folder"):
        make_study(config)
    config.drawn.folder = "somewhere"
    study = make_study(config)
    assert study.drawn.folder == "somewhere"
    assert study.baseline == study.cells[0].name
