"""The sampler against a loop without a cache, and against its own promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.generation import sampler as sampler_module
from medcare_jax.generation import slots as slots_module
from medcare_jax.generation.sampler import Sampler
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.models.families import huggingface_config
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh, tree_shardings
from tests.helpers import (
    TINY,
    huggingface_weights,
    random_params,
    tiny_decoder,
    torch_twin,
)

VOCAB, CONTEXT = TINY["qwen2"].vocab_size, TINY["qwen2"].max_position_embeddings
# One length bucket, so that most tests share one compiled function.
PROMPTS = [[5, 6, 7], [8], list(range(20, 33)), [9, 9, 9, 9], list(range(30, 46)), [11, 12]]
SHARED = {"max_new_tokens": 10, "batch": 4}
NEVER = VOCAB - 1


@pytest.fixture(scope="module")
def decoder():
    return tiny_decoder()


@pytest.fixture(scope="module")
def params(decoder):
    return random_params(decoder, seed=1)


@functools.partial(jax.jit, static_argnums=0)
def _logits(decoder, params, tokens, segments) -> jax.Array:
    """Float32 logits [t, v] of one row, all at once."""
    index = jnp.arange(CONTEXT)[None]
    hidden = decoder.apply({"params": params}, tokens, index, segments)
    return decoder.apply({"params": params}, hidden, method="unembed")[0]


def logits_without_cache(decoder, params, tokens: list[int]) -> np.ndarray:
    """Float32 logits [v] after the last token; the oracle's only step."""
    padded, segments = np.zeros((2, 1, CONTEXT), np.int32)
    padded[0, : len(tokens)], segments[0, : len(tokens)] = tokens, 1
    return np.asarray(_logits(decoder, params, padded, segments))[len(tokens) - 1]


def greedy_without_cache(decoder, params, prompt, *, max_new_tokens, end_ids) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        token = int(logits_without_cache(decoder, params, tokens).argmax())
        if token in end_ids:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def expected(decoder, params) -> list[list[int]]:
    """Greedy continuations of ten tokens, end tokens not heeded."""
    return [
        greedy_without_cache(decoder, params, prompt, max_new_tokens=10, end_ids=())
        for prompt in PROMPTS
    ]


@pytest.mark.parametrize("batch", [4, 7])
def test_greedy_equals_the_loop_without_cache(decoder, params, expected, batch):
    sampler = Sampler(decoder, params, end_ids=[NEVER], pad_id=0)
    assert sampler.generate(PROMPTS, max_new_tokens=10, batch=batch) == expected


def test_the_oracle_moves(expected):
    """A control: constant continuations would make the comparison above empty."""
    assert len({token for row in expected for token in row}) > 10


@pytest.mark.torch
def test_greedy_equals_transformers():
    """Prompts of two buckets against `generate` of the same weights."""
    import torch

    prompts = [PROMPTS[0], list(range(40, 59)), PROMPTS[4]]
    decoder = tiny_decoder("llama", NO_ADAPTERS)
    params = random_params(decoder, seed=2)
    twin = torch_twin(huggingface_config(decoder.settings), huggingface_weights(params))
    rows = Sampler(decoder, params, end_ids=[NEVER], pad_id=0).generate(
        prompts, max_new_tokens=12, batch=2
    )
    for prompt, row in zip(prompts, rows, strict=True):
        theirs = twin.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=NEVER,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert row == [token for token in theirs if token != NEVER]


def test_a_mesh_changes_nothing(decoder, params, expected):
    """Eight devices, a batch that does not divide over them, weights cut in two ways."""
    mesh = make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
    places = tree_shardings(mesh, params)
    with jax.set_mesh(mesh):
        spread = jax.tree.map(jax.device_put, params, places)
        sampler = Sampler(decoder, spread, end_ids=[NEVER], pad_id=0)
        assert sampler.generate(PROMPTS, **SHARED) == expected


def test_rows_end_at_their_own_end_token(decoder, params, expected):
    end = expected[0][4]
    stopped = [row[: row.index(end)] if end in row else row for row in expected]
    assert len({len(row) for row in stopped}) > 1, "rows end at different steps"
    sampler = Sampler(decoder, params, end_ids=[end], pad_id=0)
    assert sampler.generate(PROMPTS, **SHARED) == stopped


def test_the_loop_ends_with_its_last_row(decoder, params, expected, monkeypatch):
    """No decode step is paid for once every row is done."""
    row, end = next((row, i) for row in expected for i in range(1, 9) if row[i] not in row[:i])
    prompt = PROMPTS[expected.index(row)]
    steps = []
    original = slots_module._step

    def counted(*args):
        jax.debug.callback(lambda: steps.append(1))
        return original(*args)

    fresh = jax.jit(slots_module.advance.__wrapped__, static_argnums=0)
    monkeypatch.setattr(slots_module, "_step", counted)
    monkeypatch.setattr(sampler_module, "advance", fresh)
    sampler = Sampler(decoder, params, end_ids=[row[end]], pad_id=0)
    assert sampler.generate([prompt], max_new_tokens=10, batch=1) == [row[:end]]
    jax.effects_barrier()
    assert len(steps) == end


COMPILED = (
    slots_module.empty_slots,
    slots_module.read_prompts,
    slots_module.admit,
    slots_module.advance,
    slots_module.resize,
)


def test_nothing_compiles_twice_within_a_bucket(decoder, params):
    def sizes():
        return [function._cache_size() for function in COMPILED]

    Sampler(decoder, params, end_ids=[NEVER], pad_id=0).generate([[3, 4, 5]], **SHARED)
    compiled = sizes()
    sampler = Sampler(decoder, jax.tree.map(lambda x: x * 0.5, params), end_ids=[NEVER], pad_id=1)
    for options in ({}, {"temperature": 0.7, "top_p": 0.5}, {"max_new_tokens": 9, "seed": 5}):
        sampler.generate([[6], [7, 8], [9] * 13, *([i] for i in range(9))], **(SHARED | options))
    assert sizes() == compiled
    sampler.generate([[3] * 17], **SHARED)
    more = [now - before for now, before in zip(sizes(), compiled, strict=True)]
    assert more == [0, 1, 1, 0, 0], "a wider bucket of prompts, in the same cache"


def test_rows_come_when_they_are_done_and_slots_are_filled_again(decoder, params, expected):
    """Thirteen prompts through four slots, of which rows of one prompt end early."""
    end = expected[0][4]
    stopped = [row[: row.index(end)] if end in row else row for row in expected]
    order = [0, 1, 2, 3, 4, 5, 0, 2, 0, 5, 1, 0, 3]
    sampler = Sampler(decoder, params, end_ids=[end], pad_id=0)
    rows = list(sampler.finished([PROMPTS[i] for i in order], **SHARED))
    assert sorted(index for index, _ in rows) == list(range(13))
    for index, tokens in rows:
        assert tokens == stopped[order[index]]


def test_the_cache_is_as_long_as_its_rows_need(decoder, params, monkeypatch):
    """A long prompt that has gone does not make it longer; the batch is the batch."""
    seen = []
    original = sampler_module.advance

    def watched(*args):
        seen.append(args[2].cache.keys.shape)
        return original(*args)

    monkeypatch.setattr(sampler_module, "advance", watched)
    monkeypatch.setattr(sampler_module, "_SHORTEST_CACHE", 16)
    monkeypatch.setattr(sampler_module, "_STEPS", 4)
    sampler = Sampler(decoder, params, end_ids=[NEVER], pad_id=0)
    sampler.generate([[3] * 30, [4], [5], [6]], max_new_tokens=5, batch=1)
    assert [shape[3] for shape in seen] == [48, 16, 16, 16]
    assert {shape[1] for shape in seen} == {1}


def test_a_stream_is_the_same_continuation_token_by_token(decoder, params, expected):
    sampler = Sampler(decoder, params, end_ids=[NEVER], pad_id=0)
    stream = sampler.stream(PROMPTS[2], max_new_tokens=10)
    assert [next(stream), next(stream)] == expected[2][:2]
    assert list(stream) == expected[2][2:]


def test_left_over_prompts_are_drawn_as_they_would_have_been(decoder, params):
    sampler = Sampler(decoder, params, end_ids=[NEVER], pad_id=0)
    options = {**SHARED, "temperature": 1.0, "seed": 3}
    whole = sampler.generate(PROMPTS, **options)
    left = dict(sampler.finished([PROMPTS[4], PROMPTS[1]], numbers=[4, 1], **options))
    assert left == {0: whole[4], 1: whole[1]}


def test_parameters_are_arguments(decoder, params):
    """A closed-over tree would be baked into the program as constants."""
    sampler = Sampler(decoder, params, end_ids=[NEVER], pad_id=0)
    before = sampler.generate(PROMPTS[:1], **SHARED)
    sampler.params = jax.tree.map(lambda x: x[..., ::-1], params)
    assert sampler.generate(PROMPTS[:1], **SHARED) != before


def test_samples_depend_on_seed_and_not_on_batch(decoder, params):
    sampler = Sampler(decoder, params, end_ids=[NEVER], pad_id=0)

    def draw(batch, seed):
        return sampler.generate(PROMPTS, max_new_tokens=10, batch=batch, temperature=1.0, seed=seed)

    one = draw(4, 0)
    assert one == draw(7, 0)
    assert one != draw(4, 1)


def test_a_tiny_nucleus_is_greedy(decoder, params, expected):
    sampler = Sampler(decoder, params, end_ids=[NEVER], pad_id=0)
    rows = sampler.generate(PROMPTS, **SHARED, temperature=1.0, top_p=1e-6)
    assert rows == expected


def test_finished_rows_are_told(decoder, params):
    done: list[int] = []
    sampler = Sampler(decoder, params, end_ids=[NEVER], pad_id=0)
    sampler.generate(PROMPTS, **SHARED, on_done=done.append)
    assert sum(done) == len(PROMPTS)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "1 prompts have no token, the first is number 1"),
        ([[1] * 60], {"max_new_tokens": 5}, "exceed the context of 64; the first is number 0"),
        ([[1]], {"max_new_tokens": 0}, "at least 1"),
        ([[1]], {"top_p": 0.0}, "top_p"),
        ([[1]], {"temperature": -1.0}, "temperature"),
        ([[1]], {"seed": -1}, "seed from 0 to 4294967295"),
        ([[1]], {"seed": 2**32}, "seed from 0 to 4294967295"),
    ],
)
def test_bad_requests_are_refused(decoder, params, prompts, options, message):
    sampler = Sampler(decoder, params, end_ids=[NEVER], pad_id=0)
    with pytest.raises(ValueError, match=message):
        sampler.generate(prompts, batch=2, **{"max_new_tokens": 3, **options})


def test_an_end_token_is_needed(decoder, params):
    with pytest.raises(ValueError, match="end token"):
        Sampler(decoder, params, end_ids=[], pad_id=0)
