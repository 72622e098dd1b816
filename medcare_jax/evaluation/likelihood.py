"""How likely a model finds given texts: options of a question, and whole dialogues.

Only hidden states whose next token is scored meet the output matrix, a chunk of them at a time,
so float32 logits of a whole batch never exist.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from medcare_jax.data.packing import Batch
from medcare_jax.generation.buckets import length_batches, pad_right
from medcare_jax.generation.placement import even_batch, replicate
from medcare_jax.generation.prefill import prefill
from medcare_jax.models.attention import KVCache
from medcare_jax.models.decoder import Decoder
from medcare_jax.shapes import Params

_PAD = 0  # any id does: padding is masked
_SHORTEST_OPTION_BUCKET = 8


class OptionScore(NamedTuple):
    """The log-probability of an option's text after its prompt, in nats, and its tokens."""

    log_prob: float
    num_tokens: int

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
    quarter of scoring prompt + option anew for each of four. Compiles once per pair of prompt
    and option length buckets.

    Args:
      decoder: the model.
      params: its parameters.
      prompts: token ids of each prompt, ending where an option would begin.
      options: per prompt, token ids of each of its options; numbers may differ.
      batch: prompts at once; rows of the option pass are this times the most options.
      on_done: called with the number of prompts finished after each batch.

    Returns:
      Per prompt, one score per option, in the order given.

    Raises:
      ValueError: if the lengths of the lists differ, or a prompt or option has no token, or
        prompt and option together are longer than the model's context.
    """
    _check(prompts, options, decoder.settings.max_position_embeddings)
    scores: list[list[OptionScore]] = [[] for _ in prompts]
    most = max((len(choices) for choices in options), default=0)
    batch = even_batch(batch)
    for rows in length_batches([len(prompt) for prompt in prompts], batch):
        tokens, lengths = pad_right([prompts[i] for i in rows], batch, _PAD)
        choices = [options[i][k] if k < len(options[i]) else [] for i in rows for k in range(most)]
        labels, counts = pad_right(choices, batch * most, _PAD, minimum=_SHORTEST_OPTION_BUCKET)
        log_probs = np.asarray(_score(decoder, params, tokens, lengths, labels, counts), np.float64)
        for row, index in enumerate(rows):
            mine = range(row * most, row * most + len(options[index]))
            scores[index] = [OptionScore(float(log_probs[i]), int(counts[i])) for i in mine]
        on_done(len(rows))
    return scores


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

    def score(part: tuple[Array, Array]) -> Array:
        logits: Any = decoder.apply({"params": params}, part[0][None], method="unembed")
        chosen = jnp.take_along_axis(logits[0], part[1][:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits[0], axis=-1)

    parts = (states.reshape(-1, width, states.shape[-1]), ids.reshape(-1, width))
    log_probs: Array = jax.lax.map(score, parts).reshape(-1)[: labels.size].reshape(labels.shape)
    return log_probs


@functools.partial(jax.jit, static_argnums=0)
def _score(
    decoder: Decoder,
    params: Params,
    tokens: Int[Array, "b t"],
    lengths: Int[Array, " b"],
    labels: Int[Array, "bo t"],
    counts: Int[Array, " bo"],
) -> Float[Array, " bo"]:
    """Summed log-probability of each option; options of a prompt are neighbours."""
    repeats = labels.shape[0] // tokens.shape[0]
    _, cache = prefill(decoder, params, tokens, lengths, num_more=labels.shape[1])
    cache = KVCache(
        keys=jnp.repeat(cache.keys, repeats, axis=1),
        values=jnp.repeat(cache.values, repeats, axis=1),
        segments=jnp.repeat(cache.segments, repeats, axis=0),
    )
    # The state at the prompt's last token predicts the first label, so the pass begins there and
    # overwrites that token's slot with itself.
    last = lengths - 1
    first = jnp.repeat(jnp.take_along_axis(tokens, last[:, None], axis=1), repeats, axis=0)
    inputs = jnp.concatenate([first, labels[:, :-1]], axis=1)
    offsets = jnp.arange(labels.shape[1])[None]
    positions = jnp.repeat(last, repeats)[:, None] + offsets
    is_label = offsets < counts[:, None]
    hidden, _ = decoder.apply(
        {"params": params}, inputs, positions, is_label.astype(jnp.int32), cache
    )
    log_probs = token_log_probs(decoder, params, hidden, labels)
    return replicate(jnp.where(is_label, log_probs, 0.0).sum(axis=1))


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
        if (longest := len(prompt) + max(map(len, choices))) > context:
            raise ValueError(
                f"item {index}: prompt and longest option have {longest} tokens, but the model's "
                f"context holds {context}; leave the item out or shorten it"
            )
