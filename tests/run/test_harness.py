"""The registered model opens what the other commands open."""

import dataclasses

import pytest

from medcare_jax.conversion.bases import byte_tokenizer
from medcare_jax.conversion.huggingface import load_tokenizer, save_huggingface
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from tests.evaluation.test_harness import Request
from tests.helpers import FLOAT32, TINY, TINY_ADAPTERS, random_params
from tests.run.workdirs import make_workdir, write_base

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


def test_it_is_known_by_its_name():
    from lm_eval.api.registry import get_model

    from medcare_jax.run.harness import OpenedLM

    assert get_model("medcare_jax") is OpenedLM


def test_arguments_open_the_model_on_all_devices(tmp_path):
    from medcare_jax.evaluation.harness import DecoderLM
    from medcare_jax.run.harness import OpenedLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "vocab_size": 320}
    settings = dataclasses.replace(TINY["qwen2"], num_kv_heads=4, **sizes)
    decoder = Decoder(settings, TINY_ADAPTERS, NO_ADAPTERS, FLOAT32)
    params, path = random_params(decoder, seed=5), tmp_path / "m"
    ends = {"eos_token_id": [257, 258]}
    save_huggingface(path, settings, params, byte_tokenizer(), generation_config=ends)
    model = OpenedLM.create_from_arg_string(
        f"pretrained={path},max_length=32",
        {"batch_size": "8", "device": None, "max_batch_size": None},
    )
    assert (model.max_length, model.batch_size) == (32, 8)
    assert {257, 258} <= set(model._sampler.end_ids)
    requests = [Request("Question 1: which"), Request("Question 2: where")]
    for request, text in zip(requests, (" nerve", " not"), strict=True):
        request.args = (request.args[0], text)
    plain = DecoderLM(decoder, params, load_tokenizer(path), max_length=32)
    for (first, greedy), (second, also) in zip(
        plain.loglikelihood(requests, True), model.loglikelihood(requests, True), strict=True
    ):
        assert first == pytest.approx(second, abs=1e-4)
        assert greedy == also


def test_a_run_ends_answers_as_its_base_does(tmp_path):
    from medcare_jax.run.harness import OpenedLM

    base = write_base(tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": [9, 7]}')
    made = make_workdir(tmp_path / "run", base)
    model = OpenedLM.create_from_arg_string(f"pretrained={made.workdir},stage=mka")
    assert {9, 7} <= set(model._sampler.end_ids)


def test_a_misspelt_argument_is_refused_before_anything_is_opened():
    from medcare_jax.run.harness import OpenedLM

    with pytest.raises(ValueError, match=r"knows no dytpe; .*did you mean dtype"):
        OpenedLM.create_from_arg_string("pretrained=nowhere,dytpe=bfloat16", {"device": "cpu"})
