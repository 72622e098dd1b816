"""The bases that a run can name."""

import jax
import numpy as np
import pytest

from configs import tiny
from medcare_jax import params as trees
from medcare_jax.conversion import ConversionError
from medcare_jax.conversion.bases import base_digest, byte_tokenizer, load
from medcare_jax.settings import BaseSettings, MeshSettings, make_settings
from medcare_jax.sharding import make_mesh
from tests.run.workdirs import write_base


def test_bytes_come_back_and_markers_are_one_token():
    tokenizer = byte_tokenizer()
    text = "Ünï çödé 病\n\t <b>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("<|im_start|>").input_ids) == 1
    chat = [{"role": "user", "content": "a"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.slow
def test_a_random_base_is_the_same_for_the_same_seed_and_sharded():
    settings = make_settings(tiny.get_config()).base
    mesh = make_mesh(MeshSettings(data=1, fsdp=4, tensor=2))
    first, same, other = (load(settings, mesh, seed=seed) for seed in (0, 0, 1))
    assert first.digest == same.digest != other.digest
    assert trees.digest(first.params) == trees.digest(same.params) != trees.digest(other.params)
    kernel = first.params["model"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    assert kernel.dtype == np.float32


def test_the_digest_follows_contents_not_places(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / "model.safetensors").write_bytes(b"weights")
    assert base_digest(tmp_path / "a") == base_digest(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"Weights")
    assert base_digest(tmp_path / "a") != base_digest(tmp_path / "b")


def test_tokens_without_a_row_are_refused(tmp_path):
    mesh = make_mesh(MeshSettings(fsdp=1), jax.devices()[:1])
    write_base(tmp_path / "base")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(500)])
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(ConversionError, match="the tokenizer has 759 tokens, the embedding"):
        load(BaseSettings(path=str(tmp_path / "base")), mesh, seed=0)
    fields = make_settings(tiny.get_config()).base.random | {"vocab_size": 200}
    with pytest.raises(ConversionError, match="the tokenizer has 259 tokens, the embedding 200"):
        load(BaseSettings(path="random", random=fields), mesh, seed=0)


def test_a_base_that_is_not_there_is_named(tmp_path):
    mesh = make_mesh(MeshSettings(fsdp=1), jax.devices()[:1])
    with pytest.raises(FileNotFoundError, match="absent"):
        load(BaseSettings(path=str(tmp_path / "absent")), mesh, seed=0)
