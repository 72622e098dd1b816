"""What a run reads, and the check that no evaluation question is trained on."""

import dataclasses
import json

import pytest

from configs import tiny
from medcare_jax.conversion.bases import byte_tokenizer
from medcare_jax.run.data import OverlapError, check_files, open_data
from medcare_jax.run.outputs import context_warnings, data_warnings
from medcare_jax.settings import SettingsError, make_settings


@pytest.fixture
def settings():
    return make_settings(tiny.get_config())


def write(path, *questions, **evaluation):
    items = [
        {
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": "Asthma"},
            ],
            **({"eval": evaluation} if evaluation else {}),
        }
        for question in questions
    ]
    path.write_text(json.dumps(items))
    return str(path)


def with_files(settings, folder, training):
    (folder / "test").mkdir()
    write(folder / "test" / "unseen.json", "Which one?", answer="Asthma", options=["Asthma", "No"])
    return dataclasses.replace(
        settings,
        icd10=dataclasses.replace(settings.icd10, make=False),
        mka=dataclasses.replace(settings.mka, files=(training,)),
        da=dataclasses.replace(settings.da, files=(training,)),
        evaluation=dataclasses.replace(settings.evaluation, folder=str(folder / "test")),
    )


def test_the_demo_tasks_fill_empty_file_lists(settings, tmp_path):
    data = open_data(settings, byte_tokenizer(), tmp_path)
    assert (tmp_path / "data" / "2-stage" / "train.json").is_file()
    assert [task.name for task in data.tasks] == ["icd10_unseen", "icd10_retained", "icd10_coding"]
    assert data.report["overlap"]["overlaps"] == ()
    assert data.report["mka"]["steps"] == data.mka.num_batches
    json.dumps(data.report)


def test_a_question_of_the_evaluation_in_training_stops_the_run(settings, tmp_path):
    training = write(tmp_path / "train.json", "Something else", "WHICH one")
    settings = with_files(settings, tmp_path, training)
    with pytest.raises(OverlapError, match=r"1 evaluation questions .*\n.*train\.json:1") as error:
        open_data(settings, byte_tokenizer(), tmp_path)
    assert "WHICH" not in str(error.value)
    off = dataclasses.replace(
        settings, data=dataclasses.replace(settings.data, check_overlap=False)
    )
    report = open_data(off, byte_tokenizer(), tmp_path).report
    assert len(report["overlap"]["overlaps"]) == 1


def test_a_stage_without_files_is_refused(settings, tmp_path):
    training = write(tmp_path / "train.json", "Something else")
    settings = with_files(settings, tmp_path, training)
    settings = dataclasses.replace(settings, da=dataclasses.replace(settings.da, files=()))
    with pytest.raises(SettingsError, match=r"da\.files is empty"):
        check_files(settings)


def test_a_file_that_is_not_there_is_named_with_its_key(settings, tmp_path):
    settings = with_files(settings, tmp_path, str(tmp_path / "absent.json"))
    with pytest.raises(FileNotFoundError, match=r"mka\.files: no file or folder .*absent\.json"):
        check_files(settings)
    missing = dataclasses.replace(settings.evaluation, folder="nowhere")
    there = write(tmp_path / "train.json", "Something else")
    stage = dataclasses.replace(settings.mka, files=(there,))
    settings = dataclasses.replace(settings, mka=stage, da=stage, evaluation=missing)
    with pytest.raises(FileNotFoundError, match=r"evaluation\.folder: no folder .*nowhere"):
        check_files(settings)


def test_warnings_name_what_is_lost(settings, tmp_path):
    settings = with_files(settings, tmp_path, write(tmp_path / "train.json", "a" * 900, "short"))
    warnings = data_warnings(open_data(settings, byte_tokenizer(), tmp_path))
    assert "1 of 2 dialogues" in warnings[0]
    assert "data.row_length = 512 tokens and are dropped" in warnings[0]
    assert "mka has only 1 step; raise mka.epochs or lower data.rows" in warnings[1]


def test_few_steps_that_were_asked_for_are_said_to_be(settings, tmp_path):
    training = write(tmp_path / "train.json", *map(str, range(40)))
    settings = with_files(settings, tmp_path, training)
    settings = dataclasses.replace(
        settings,
        mka=dataclasses.replace(settings.mka, max_steps=2, epochs=20),
        data=dataclasses.replace(settings.data, rows=1),
    )
    warnings = data_warnings(open_data(settings, byte_tokenizer(), tmp_path))
    assert "mka has only 2 steps; raise mka.max_steps" in warnings


def test_dialogues_longer_than_the_context_are_warned_of_and_packed_rows_are_not(
    settings, tmp_path
):
    settings = with_files(settings, tmp_path, write(tmp_path / "train.json", "a" * 200, "short"))
    data = open_data(settings, byte_tokenizer(), tmp_path)
    longest = data.mka.longest
    assert 200 < longest < settings.data.row_length == 512
    assert context_warnings(data, longest) == []
    for name, said in zip(("mka", "da"), context_warnings(data, longest - 1), strict=True):
        assert said.startswith(f"{name} has dialogues of up to {longest} tokens (data.row_length")
        assert f"= 512), more than the base's context of {longest - 1} (max_position" in said


def test_warnings_tell_the_cut_from_those_left_without_a_target(settings, tmp_path):
    path = tmp_path / "train.json"
    long = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b" * 900}]
    empty = [{"from": "human", "value": "a" * 900}, {"from": "gpt", "value": "b"}]
    early = [{"from": "gpt", "value": "Hello"}, *long[:1], {"from": "gpt", "value": "c"}]
    turns = [long, long, empty, early]
    path.write_text(json.dumps([{"conversations": each} for each in turns]))
    settings = with_files(settings, tmp_path, str(path))
    data = dataclasses.replace(settings.data, over_long="cut")
    said = data_warnings(
        open_data(dataclasses.replace(settings, data=data), byte_tokenizer(), tmp_path)
    )
    assert "2 of 4 dialogues" in said[0]
    assert "and are cut" in said[0]
    assert "1 of 4 dialogues" in said[1]
    assert "no token to learn" in said[1]
    assert "1 answers of" in said[2]
    assert "before the first question" in said[2]
