"""The streamed model gives the decoder's logits, and differences are found and measured."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax import params as trees
from medcare_jax.conversion.bases import byte_tokenizer
from medcare_jax.conversion.comparison import (
    PROMPTS,
    StreamedModel,
    compare_models,
    prompt_tokens,
    streamed_logits,
)
from medcare_jax.conversion.tensors import ConversionError, from_array
from medcare_jax.models.aggregators import MKA_COMPONENTS
from tests.helpers import TINY, TINY_ADAPTERS, Inputs, outputs_of, random_params, tiny_decoder


def streamed(family: str, params: trees.Tree) -> StreamedModel:
    leaves = {path: from_array(leaf) for path, leaf in trees.flatten(params).items()}
    return StreamedModel(TINY[family], leaves, TINY_ADAPTERS, MKA_COMPONENTS)


@pytest.mark.parametrize("family", ["qwen2", "llama"])  # untied and tied
def test_layer_by_layer_is_the_decoder(family: str) -> None:
    """With its noise; prompts of uneven lengths do not see each other's padding."""
    decoder = tiny_decoder(family)
    params = random_params(decoder)
    prompts = [np.asarray([5, 9, 96, 0, 7], np.int32), np.asarray([3, 1], np.int32)]
    found = list(streamed_logits(streamed(family, params), prompts))
    # Both as segments of one row.
    tokens = jnp.asarray(np.concatenate(prompts))[None]
    positions = jnp.asarray([[*range(5), *range(2)]], jnp.int32)
    segments = jnp.asarray([[1] * 5 + [2] * 2], jnp.int32)
    expected = outputs_of(decoder, params, Inputs(tokens, positions, segments)).logits
    np.testing.assert_allclose(np.concatenate(found), expected[0], rtol=0, atol=2e-5)


def test_a_model_agrees_with_itself_and_not_with_another() -> None:
    params = random_params(tiny_decoder())
    prompts = prompt_tokens(TINY["qwen2"], None)
    same = compare_models(streamed("qwen2", params), streamed("qwen2", params), prompts)
    assert dataclasses.astuple(same) == (48, 0.0, 0.0, 1.0)
    moved = jax.tree.map(lambda leaf: leaf * jnp.asarray(1.01, leaf.dtype), params)
    other = compare_models(streamed("qwen2", params), streamed("qwen2", moved), prompts)
    assert other.max_logit_difference > 1e-3
    assert other.kl > 1e-7
    assert other.argmax_agreement <= 1


@pytest.mark.parametrize(
    ("broken", "which"), [(0, "to be converted"), (1, "converted")], ids=["first", "second"]
)
def test_logits_that_are_not_finite_agree_with_nothing(broken: int, which: str) -> None:
    params = random_params(tiny_decoder())
    scale = params["model"]["norm"]["scale"].at[3].set(jnp.nan)
    model = {**params["model"], "norm": {"scale": scale}}
    pair = [streamed("qwen2", params), streamed("qwen2", params)]
    pair[broken] = streamed("qwen2", {**params, "model": model})
    with pytest.raises(ConversionError, match=rf"98 of .* model {which} are not finite"):
        compare_models(*pair, [np.asarray([4], np.int32)])


def test_the_divergence_is_the_textbook_one() -> None:
    """Two models that differ in the output matrix alone."""
    params = random_params(tiny_decoder())
    head = params["lm_head"]["kernel"]
    other = {**params, "lm_head": {"kernel": head + 0.1 * jnp.sin(jnp.arange(98.0))[None]}}
    prompts = [np.asarray([4, 8, 15], np.int32)]
    pair = [streamed("qwen2", each) for each in (params, other)]
    p, q = (
        jax.nn.softmax(jnp.asarray(next(streamed_logits(model, prompts))), axis=-1)
        for model in pair
    )
    expected = float(jnp.mean(jnp.sum(p * jnp.log(p / q), axis=-1)))
    assert compare_models(*pair, prompts).kl == pytest.approx(expected, rel=1e-3)


def test_prompts_with_and_without_a_tokenizer() -> None:
    settings = dataclasses.replace(TINY["qwen2"], vocab_size=300)
    given = prompt_tokens(settings, byte_tokenizer())
    assert [bytes(ids.tolist()).decode(errors="ignore")[:10] for ids in given[::2]] == [
        PROMPTS[0][:10],
        PROMPTS[2][:10],
    ]
    for ids in (*given, *prompt_tokens(TINY["qwen2"], None)):
        assert ids.dtype == np.int32
        assert 0 < len(ids) <= 16
        assert ids.max() < 300
