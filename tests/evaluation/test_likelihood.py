"""Scores from a shared cache against the plain sum over whole rows of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcare_jax.data.packing import Batch
from medcare_jax.evaluation import likelihood
from medcare_jax.evaluation.likelihood import (
    continuation_scores,
    dialogue_nll,
    option_scores,
    rolling_pairs,
    token_log_probs,
)
from medcare_jax.generation.sampler import Sampler
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh, tree_shardings
from tests.helpers import TINY, Inputs, outputs_of, random_params, tiny_decoder

VOCAB = TINY["qwen2"].vocab_size
# Prompts of two buckets; options of several lengths and, for one prompt, fewer of them.
PROMPTS = [[5, 6, 7], [8], list(range(20, 39)), [9, 9, 9, 9], list(range(30, 42))]
OPTIONS = [
    [[1], [2, 3], [4, 5, 6, 7]],
    [[90, 91, 92], [1]],
    [[3, 3], [3, 3, 3], [7]],
    [[60] * 8, [61], [62, 63]],
    [[1, 2], [2, 1], [1, 2]],
]


@pytest.fixture(scope="module")
def decoder():
    return tiny_decoder("qwen2", NO_ADAPTERS)


@pytest.fixture(scope="module")
def params(decoder):
    return random_params(decoder, seed=3)


@pytest.fixture(scope="module")
def expected(decoder, params):
    """Log-probability of each option from one full row, all logits at once, in float64."""
    rows = [p + o for p, options in zip(PROMPTS, OPTIONS, strict=True) for o in options]
    tokens = np.zeros((len(rows), 32), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    positions = np.broadcast_to(np.arange(32, dtype=np.int32), tokens.shape)
    segments = (positions < np.array([[len(row)] for row in rows])).astype(np.int32)
    inputs = Inputs(*map(jnp.asarray, (tokens, positions, segments)))
    logits = outputs_of(decoder, params, inputs).logits.astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores, row = [], 0
    for prompt, options in zip(PROMPTS, OPTIONS, strict=True):
        scores.append([])
        for option in options:
            places = range(len(prompt) - 1, len(prompt) - 1 + len(option))
            scores[-1].append(
                sum(log_probs[row, p, t] for p, t in zip(places, option, strict=True))
            )
            row += 1
    return scores


def test_scores_equal_those_of_whole_rows(decoder, params, expected):
    """Four prompts of one bucket in batches of three, the last with rows to fill it."""
    scores = option_scores(decoder, params, PROMPTS, OPTIONS, batch=3)
    for mine, theirs, options in zip(scores, expected, OPTIONS, strict=True):
        np.testing.assert_allclose([score.log_prob for score in mine], theirs, atol=2e-5)
        assert [score.num_tokens for score in mine] == [len(option) for option in options]
    assert scores[4][0] == scores[4][2], "the same option twice has the same score"
    assert scores[0][2].mean == scores[0][2].log_prob / 4


def test_pairs_in_any_order_have_the_scores_of_their_options(decoder, params, expected):
    pairs = [(p, o) for p, options in zip(PROMPTS, OPTIONS, strict=True) for o in options]
    order = np.random.default_rng(0).permutation(len(pairs))
    done: list[int] = []
    scores = continuation_scores(
        decoder, params, [pairs[i] for i in order], batch=3, on_done=done.append
    )
    flat = [log_prob for row in expected for log_prob in row]
    np.testing.assert_allclose(
        [score.log_prob for score in scores], [flat[i] for i in order], atol=2e-5
    )
    assert sum(done) == len(pairs)  # also those that share the context of another


@pytest.fixture
def shapes(monkeypatch):
    """Rows and widths of every pass over options."""
    found, score = [], likelihood._score

    def watched(decoder, params, tokens, lengths, labels, counts):
        found.append(labels.shape)
        return score(decoder, params, tokens, lengths, labels, counts)

    monkeypatch.setattr(likelihood, "_score", watched)
    return found


def test_texts_that_begin_alike_do_not_pile_up(decoder, params, shapes):
    """62 rolling texts, whose first windows all have the same context of one token."""
    pairs = [([0], [number, 7, 3, 5]) for number in range(1, 63)]
    scores = continuation_scores(decoder, params, pairs, batch=8)
    assert {rows for rows, _ in shapes} == {8}
    (alone,) = continuation_scores(decoder, params, pairs[40:41], batch=1)
    assert scores[40].log_prob == pytest.approx(alone.log_prob, abs=2e-5)


def test_many_options_of_one_context_are_taken_in_turns(decoder, params, shapes):
    pairs = [([4] * 12, [number]) for number in range(1, 21)]
    scores = continuation_scores(decoder, params, pairs, batch=2)
    assert max(rows for rows, _ in shapes) == 2 * 8
    (row,) = option_scores(decoder, params, [[4] * 12], [[[n] for n in range(1, 21)]], batch=1)
    np.testing.assert_allclose(
        [score.log_prob for score in scores], [score.log_prob for score in row], atol=2e-5
    )


def test_what_greedy_generation_writes_is_greedy_and_one_changed_token_is_not(decoder, params):
    sampler = Sampler(decoder, params, end_ids=[VOCAB - 1], pad_id=0)
    rows = sampler.generate(PROMPTS, max_new_tokens=6, batch=5)
    written = list(zip(PROMPTS, rows, strict=True))
    changed = [(prompt, [*row[:3], (row[3] + 1) % VOCAB, *row[4:]]) for prompt, row in written]
    first = [(prompt, row[:1]) for prompt, row in written]
    scores = continuation_scores(decoder, params, written + changed + first, batch=2)
    assert [score.is_greedy for score in scores] == [True] * 5 + [False] * 5 + [True] * 5


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 7))
def test_rolling_pairs_score_every_token_once_and_fit(tokens, context):
    pairs = rolling_pairs(tokens, first=0, context=context)
    assert [token for _, more in pairs for token in more] == tokens
    done = 0
    for before, more in pairs:
        assert 1 <= len(before)
        assert len(before) + len(more) - 1 <= context
        assert before == [0, *tokens][done + 1 - len(before) : done + 1]
        is_first_or_reaches_back = not done or len(before) + len(more) - 1 == context
        assert is_first_or_reaches_back
        done += len(more)


def test_rolling_pairs_add_up_to_the_whole_text(decoder, params):
    """A text that fits: the sum over all tokens but the first, which stands for the beginning."""
    text = [*PROMPTS[2], *PROMPTS[4]]
    total = _total(decoder, params, [3], text)
    (score,) = continuation_scores(
        decoder, params, rolling_pairs(text, first=3, context=64), batch=1
    )
    assert score.log_prob == pytest.approx(total, abs=1e-4)
    assert score.num_tokens == len(text)
    cut = rolling_pairs(text, first=3, context=9)
    parts = continuation_scores(decoder, params, cut, batch=2)
    by_hand = sum(_total(decoder, params, *pair) for pair in cut)
    assert sum(part.log_prob for part in parts) == pytest.approx(by_hand, abs=1e-4)


def _total(decoder, params, before, more):
    """The log-probability of `more` after `before`, from one whole row."""
    ids = np.zeros((1, 36), np.int32)
    ids[0, : len(before) + len(more)] = [*before, *more]
    inputs = (jnp.asarray(ids), jnp.arange(36)[None], jnp.ones((1, 36), jnp.int32))
    log_probs = jax.nn.log_softmax(jnp.asarray(outputs_of(decoder, params, Inputs(*inputs)).logits))
    return sum(float(log_probs[0, len(before) - 1 + i, token]) for i, token in enumerate(more))


def test_a_mesh_changes_nothing(decoder, params, expected):
    mesh = make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        spread = jax.tree.map(jax.device_put, params, tree_shardings(mesh, params))
        scores = option_scores(decoder, spread, PROMPTS[:2], OPTIONS[:2], batch=2)
    for mine, theirs in zip(scores, expected[:2], strict=True):
        np.testing.assert_allclose([score.log_prob for score in mine], theirs, atol=2e-5)


def test_nothing_compiles_twice_within_a_bucket(decoder, params):
    option_scores(decoder, params, PROMPTS[:1], OPTIONS[:1], batch=3)
    compiled = likelihood._score._cache_size()
    half = jax.tree.map(lambda x: x * 0.5, params)
    option_scores(decoder, half, [[4] * 15, [2]], [[[1] * 8, [2], [3]], [[4]] * 3], batch=3)
    assert likelihood._score._cache_size() == compiled


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_chunks_do_not_matter(decoder, params, chunk):
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 20)), jnp.float32)
    labels = jnp.asarray(np.random.default_rng(1).integers(0, VOCAB, (3, 5)), jnp.int32)
    logits = decoder.apply({"params": params}, hidden, method="unembed")
    whole = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    mine = token_log_probs(decoder, params, hidden, labels, chunk=chunk)
    np.testing.assert_allclose(mine, whole, atol=1e-5)


def test_logits_of_a_whole_batch_never_exist(decoder, params):
    """The largest array of the compiled program is far below [tokens, vocabulary]."""
    hidden, labels = jnp.zeros((64, 64, 20)), jnp.zeros((64, 64), jnp.int32)

    def temporary_bytes(chunk):
        run = jax.jit(lambda *args: token_log_probs(decoder, *args, chunk=chunk))
        return run.lower(params, hidden, labels).compile().memory_analysis().temp_size_in_bytes

    whole = labels.size * VOCAB * 4
    assert temporary_bytes(32) < whole / 2
    assert temporary_bytes(labels.size) >= whole, "the measure can tell"


def test_dialogue_nll_is_the_mean_over_targets_of_their_own_segment(decoder, params):
    tokens = np.array([[11, 12, 13, 14, 21, 22, 23, 0], [31, 32, 33, 34, 35, 36, 37, 38]], np.int32)
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 0], range(8)], np.int32)
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1] * 8], np.int32)
    is_target = np.zeros((2, 8), bool)
    is_target[0, [2, 3, 6]] = is_target[1, 5:] = True
    batch = Batch(tokens, positions, segments, is_target)
    alone = np.zeros((3, 8), np.int32)
    alone[0, :4], alone[1, :3], alone[2] = tokens[0, :4], tokens[0, 4:7], tokens[1]
    targets = [(0, 2), (0, 3), (1, 2), (2, 5), (2, 6), (2, 7)]
    inputs = (jnp.asarray(alone), jnp.asarray([range(8)] * 3), jnp.ones((3, 8), jnp.int32))
    log_probs = jax.nn.log_softmax(jnp.asarray(outputs_of(decoder, params, Inputs(*inputs)).logits))
    total = -sum(float(log_probs[row, i - 1, alone[row, i]]) for row, i in targets)
    nll = dialogue_nll(decoder, params, [batch, batch])
    assert nll.num_tokens == 12
    assert nll.total == pytest.approx(2 * total, abs=1e-4)
    assert nll.mean == nll.total / 12


def test_no_targets_are_refused(decoder, params):
    with pytest.raises(ValueError, match="target tokens"):
        dialogue_nll(decoder, params, [])


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1]], [], "each of 1 prompts, got 0"),
        ([[1], []], [[[1]], [[1]]], "item 1: .* prompt of 0"),
        ([[1]], [[[1], []]], r"options of \[1, 0\]"),
        ([[1]], [[]], r"options of \[\]"),
        ([[1] * 60], [[[1], [2] * 6]], "item 0: .* 65 tokens, .* holds 64"),
    ],
)
def test_what_cannot_be_scored_is_refused(decoder, params, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        option_scores(decoder, params, prompts, options, batch=2)
