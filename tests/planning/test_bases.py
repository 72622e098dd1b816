"""The shape of a base: what a config.json cannot say is one error that names the file."""

import json

import pytest

from medcare_jax.planning.bases import base_shape
from medcare_jax.settings import BaseSettings, SettingsError
from tests.planning.runs import settings


def test_a_shape_comes_from_a_folder_a_name_or_the_config(tmp_path):
    config = settings().base.random
    (tmp_path / "config.json").write_text(json.dumps(config))
    found, source = base_shape(BaseSettings(path=str(tmp_path)))
    assert source == str(tmp_path / "config.json")
    assert base_shape(settings().base) == (found, "base.random")
    assert base_shape(BaseSettings(path="models/Qwen1.5-7B-Chat"))[0].hidden_size == 4096


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "mistral"}', "model_type 'mistral' is not supported"),
        ('{"model_type": "qwen2"}', "there is no field 'num_attention_heads'"),
        ('{"model_type": "qwen2", "num_attention_heads": 0, "hidden_size": 2}', "config.json: "),
        ('{"model_type": ', "not JSON"),
        ("[1]", "holds a list"),
    ],
)
def test_a_config_that_is_none_of_ours_is_refused_by_its_file(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SettingsError, match=message) as refused:
        base_shape(BaseSettings(path=str(tmp_path)))
    assert str(tmp_path / "config.json") in str(refused.value)


def test_a_random_base_that_is_none_of_ours_is_refused_by_its_key():
    with pytest.raises(SettingsError, match=r"base\.random: model_type 'gpt2' is not supported"):
        base_shape(BaseSettings(path="random", random={"model_type": "gpt2"}))
