"""How likely a model finds given texts: options of a question, and whole dialogues.

Only hidden states whose next token is scored meet the output matrix, a chunk of them at a time,
so float32 logits of a whole batch never exist.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from medcare_jax.data.packing import Batch
from medcare_jax.generation.buckets import length_batches, pad_right
from medcare_jax.generation.placement import even_batch, replicate
from medcare_jax.generation.prefill import prefill
from medcare_jax.models.decoder import Decoder
from medcare_jax.shapes import Params

_PAD = 0  # any id does: padding is masked
_SHORTEST_OPTION_BUCKET = 8
_MOST_OPTIONS = 8  # of one context at once: rows are this times the batch


class OptionScore(NamedTuple):
    """How likely an option is after its prompt.

    Attributes:
      log_prob: Log-probability of its tokens, in nats.
      num_tokens: How many they are.
      is_greedy: Whether each of them is the likeliest, so that greedy generation would write it.
    """

    log_prob: float
    num_tokens: int
    is_greedy: bool

    @property
    def mean(self) -> float:
        """Log-probability per token: what options of different lengths are compared by."""
        return self.log_prob / self.num_tokens


class NegativeLogLikelihood(NamedTuple):
    """Summed negative log-likelihood of target tokens, in nats, and how many they were."""

    total: float
    num_tokens: int

    @property
    def mean(self) -> float:
        """Nats per target token."""
        return self.total / self.num_tokens


def option_scores(
    decoder: Decoder,
    params: Params,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    batch: int,
    on_done: Callable[[int], None] = lambda rows: None,
) -> list[list[OptionScore]]:
    """Scores of every option of every prompt.

    A prompt is computed once and its key-value cache shared by its options, which costs a
    quarter of scoring prompt + option anew for each of four. Compiles once per number of options
    and pair of prompt and option length buckets.

    Args:
      decoder: the model.
      params: its parameters.
      prompts: token ids of each prompt, ending where an option would begin.
      options: per prompt, token ids of each of its options; numbers may differ.
      batch: prompts at once; rows of the option pass are this times the options of each.
      on_done: called with the number of prompts finished after each batch.

    Returns:
      Per prompt, one score per option, in the order given.

    Raises:
      ValueError: if the lengths of the lists differ, or a prompt or option has no token, or
        prompt and option together do not fit the model's context. The last token of an option
        needs no place there, since nothing is read behind it.
    """
    scores: list[list[OptionScore]] = [[] for _ in prompts]
    for found in _batches(decoder, params, prompts, options, batch):
        for index, row in found.items():
            scores[index] = row
        on_done(len(found))
    return scores


def continuation_scores(
    decoder: Decoder,
    params: Params,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch: int,
    on_done: Callable[[int], None] = lambda pairs: None,
) -> list[OptionScore]:
    """Scores of any (context, continuation) pairs of token ids, in their order.

    Pairs with the same context are computed together in groups, as the options of one prompt. A
    context that is not longer than its continuation saves less than the rows cost that wait for
    each other: all first windows of rolling texts have the same one token.

    Args:
      decoder: the model.
      params: its parameters.
      pairs: contexts and continuations, at least one token each.
      batch: groups at once; rows of one pass are up to 8 times as many.
      on_done: called with the number of pairs finished after each batch of groups.

    Raises:
      ValueError: as `option_scores`; item numbers in messages are those of the groups, counted in
        the order in which they begin.
    """
    groups = _sharing(pairs)
    contexts = [pairs[group[0]][0] for group in groups]
    options = [[pairs[place][1] for place in group] for group in groups]
    scores: dict[int, OptionScore] = {}
    for found in _batches(decoder, params, contexts, options, batch):
        for group, row in found.items():
            scores |= dict(zip(groups[group], row, strict=True))
        on_done(sum(map(len, found.values())))
    return [scores[place] for place in range(len(pairs))]


def rolling_pairs(
    tokens: Sequence[int], *, first: int, context: int
) -> list[tuple[list[int], list[int]]]:
    """Cuts a text into pairs whose scores add up to its rolling log-likelihood.

    Every token is a continuation exactly once. The first piece follows `first` alone and fills the
    context; so does every later one; the last piece reaches back for as much as there is room for.

    Args:
      tokens: ids of the text.
      first: what stands before the first token, which could not be scored otherwise.
      context: most tokens that the model reads at once, at least 1.

    Returns:
      (context, continuation) pairs for `continuation_scores`.

    Examples:
      >>> rolling_pairs([1, 2, 3, 4, 5], first=0, context=4)
      [([0], [1, 2, 3, 4]), ([1, 2, 3, 4], [5])]
    """
    whole, pairs = [first, *tokens], []
    for start in range(1, len(whole), context):
        end = min(start + context, len(whole))
        pairs.append((whole[max(0, end - 1 - context) : start], whole[start:end]))
    return pairs


def dialogue_nll(
    decoder: Decoder, params: Params, batches: Iterable[Batch]
) -> NegativeLogLikelihood:
    """The negative log-likelihood of all target tokens of packed dialogues.

    Args:
      decoder: the model.
      params: its parameters.
      batches: packed rows, all of one shape, so that one function is compiled.

    Returns:
      Sum and count over all batches; their mean is the mean over target tokens.

    Raises:
      ValueError: if there is no target token.
    """
    total, num_tokens = 0.0, 0
    for batch in batches:
        batch_total, batch_tokens = _batch_nll(decoder, params, batch)
        total += float(batch_total)
        num_tokens += int(batch_tokens)
    if not num_tokens:
        raise ValueError("expected target tokens to score, got none: are the dialogues empty?")
    return NegativeLogLikelihood(total, num_tokens)


def token_log_probs(
    decoder: Decoder,
    params: Params,
    hidden: Float[Array, "b t d"],
    labels: Int[Array, "b t"],
    *,
    chunk: int = 256,
) -> Float[Array, "b t"]:
    """The log-probability of each label given the hidden state at its place, float32.

    Arguments as `token_scores`.
    """
    return token_scores(decoder, params, hidden, labels, chunk=chunk)[0]


def token_scores(
    decoder: Decoder,
    params: Params,
    hidden: Float[Array, "b t d"],
    labels: Int[Array, "b t"],
    *,
    chunk: int = 256,
) -> tuple[Float[Array, "b t"], Bool[Array, "b t"]]:
    """Each label's log-probability given the state at its place, and whether it is the likeliest.

    Args:
      decoder: the model, for its `unembed`.
      params: its parameters.
      hidden: states after the final norm; the one at i predicts the label at i.
      labels: token ids.
      chunk: hidden states whose [v] logits exist at once.
    """
    width = min(chunk, labels.size)
    missing = -labels.size % width
    states = jnp.pad(hidden.reshape(-1, hidden.shape[-1]), ((0, missing), (0, 0)))
    ids = jnp.pad(labels.reshape(-1), (0, missing))

    def score(part: tuple[Array, Array]) -> tuple[Array, Array]:
        logits: Any = decoder.apply({"params": params}, part[0][None], method="unembed")
        chosen = jnp.take_along_axis(logits[0], part[1][:, None], axis=-1)[:, 0]
        is_likeliest = logits[0].argmax(axis=-1) == part[1]
        return chosen - jax.nn.logsumexp(logits[0], axis=-1), is_likeliest

    parts = (states.reshape(-1, width, states.shape[-1]), ids.reshape(-1, width))
    log_probs, is_likeliest = (
        found.reshape(-1)[: labels.size].reshape(labels.shape)
        for found in jax.lax.map(score, parts)
    )
    return log_probs, is_likeliest


def _batches(
    decoder: Decoder,
    params: Params,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    batch: int,
) -> Iterator[dict[int, list[OptionScore]]]:
    """The scores of the options of each prompt, by the prompt's number, batch by batch."""
    _check(prompts, options, decoder.settings.max_position_embeddings)
    batch = even_batch(batch)
    for rows in _alike(prompts, options, batch):
        tokens, lengths = pad_right([prompts[i] for i in rows], batch, _PAD)
        choices = [option for i in rows for option in options[i]]
        many = len(options[rows[0]])
        labels, counts = pad_right(choices, batch * many, _PAD, minimum=_SHORTEST_OPTION_BUCKET)
        found = _score(decoder, params, tokens, lengths, labels, counts)
        log_probs, is_greedy = np.asarray(found[0], np.float64), np.asarray(found[1])
        yield {
            index: [
                OptionScore(float(log_probs[i]), int(counts[i]), bool(is_greedy[i]))
                for i in range(row * many, (row + 1) * many)
            ]
            for row, index in enumerate(rows)
        }


@functools.partial(jax.jit, static_argnums=0)
def _score(
    decoder: Decoder,
    params: Params,
    tokens: Int[Array, "b t"],
    lengths: Int[Array, " b"],
    labels: Int[Array, "bo t"],
    counts: Int[Array, " bo"],
) -> tuple[Float[Array, " bo"], Bool[Array, " bo"]]:
    """Summed log-probability of each option, and whether it is greedy.

    Options of a prompt are neighbours.
    """
    repeats = labels.shape[0] // tokens.shape[0]
    _, cache = prefill(decoder, params, tokens, lengths)
    # The state at the prompt's last token predicts the first label, so the pass begins there:
    # that token is computed again, and its slot not seen.
    last = lengths - 1
    first = jnp.repeat(jnp.take_along_axis(tokens, last[:, None], axis=1), repeats, axis=0)
    inputs = jnp.concatenate([first, labels[:, :-1]], axis=1)
    offsets = jnp.arange(labels.shape[1])[None]
    positions = jnp.repeat(last, repeats)[:, None] + offsets
    is_label = offsets < counts[:, None]
    hidden, _ = decoder.apply(
        {"params": params}, inputs, positions, is_label.astype(jnp.int32), cache
    )
    log_probs, is_likeliest = token_scores(decoder, params, hidden, labels)
    total = jnp.where(is_label, log_probs, 0.0).sum(axis=1)
    return replicate(total), replicate((is_likeliest | ~is_label).all(axis=1))


@functools.partial(jax.jit, static_argnums=0)
def _batch_nll(
    decoder: Decoder, params: Params, batch: Batch
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Sum over target tokens, and their number, of one packed batch."""
    tokens, positions, segments = batch.tokens, batch.positions, batch.segments
    hidden: Any = decoder.apply({"params": params}, tokens, positions, segments)
    log_probs = token_log_probs(decoder, params, hidden[:, :-1], jnp.asarray(tokens[:, 1:]))
    is_scored = batch.is_target[:, 1:] & (segments[:, 1:] == segments[:, :-1])
    total = -jnp.where(is_scored, log_probs, 0.0).sum()
    return replicate(total), replicate(is_scored.sum())


def _alike(
    prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]], batch: int
) -> Iterator[list[int]]:
    """Numbers of prompts in batches: of as many options, and of similar length."""
    groups: dict[int, list[int]] = {}
    for number, choices in enumerate(options):
        groups.setdefault(len(choices), []).append(number)
    for group in groups.values():
        for rows in length_batches([len(prompts[i]) for i in group], batch):
            yield [group[row] for row in rows]


def _sharing(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[int]]:
    """Numbers of pairs in groups that share a context."""
    groups: list[list[int]] = []
    open_groups: dict[tuple[int, ...], list[int]] = {}
    for place, (context, continuation) in enumerate(pairs):
        key = tuple(context)
        group = open_groups.get(key)
        is_shared = len(context) > len(continuation)
        if is_shared and group is not None and len(group) < _MOST_OPTIONS:
            group.append(place)
            continue
        groups.append([place])
        if is_shared:
            open_groups[key] = groups[-1]
    return groups


def _check(
    prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]], context: int
) -> None:
    """Refuses what cannot be scored, by number and never by text."""
    if len(prompts) != len(options):
        raise ValueError(f"expected options for each of {len(prompts)} prompts, got {len(options)}")
    for index, (prompt, choices) in enumerate(zip(prompts, options, strict=True)):
        if not prompt or not choices or not all(choices):
            raise ValueError(
                f"item {index}: expected tokens in the prompt and in every option, got a prompt "
                f"of {len(prompt)} and options of {[len(choice) for choice in choices]}"
            )
        if (longest := len(prompt) + max(map(len, choices)) - 1) > context:
            raise ValueError(
                f"item {index}: prompt and longest option but its last token have {longest} "
                f"tokens, but the model's context holds {context}; leave the item out or shorten it"
            )
