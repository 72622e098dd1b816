"""Token by token continuation of many prompts: one compiled function per prompt length bucket.

A prompt goes once through the decoder (prefill), which fills a static key-value cache; then one
token per row and step until every row has met an end token or its budget. Prompts are padded on
the right and each row counts its own positions, so a prompt's continuation does not depend on
its neighbours in the batch.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from medcare_jax.generation.buckets import length_batches, pad_right
from medcare_jax.generation.placement import even_batch, replicate
from medcare_jax.generation.prefill import prefill
from medcare_jax.models.attention import KVCache
from medcare_jax.models.decoder import Decoder
from medcare_jax.shapes import Params


class _Rows(NamedTuple):
    """What a batch of rows knows between two decode steps; every field may differ per row."""

    cache: KVCache
    newest: Int[Array, " b"]  # the token chosen last, not yet in the cache
    positions: Int[Array, " b"]  # where the token after it will stand
    num_new: Int[Array, " b"]  # tokens written to `output`
    is_done: Bool[Array, " b"]
    output: Int[Array, "b t"]


class Sampler:
    """Continues prompts with a decoder, greedily or by temperature and nucleus sampling.

    Attributes:
      decoder: the model; its adapters and components are part of what is compiled.
      params: its parameters, an argument of the compiled function and never a constant of it.
      end_ids: tokens that end a continuation.
      pad_id: token that fills what is not there; never attended to.
    """

    def __init__(
        self, decoder: Decoder, params: Params, *, end_ids: Collection[int], pad_id: int
    ) -> None:
        """Stores what every call of `generate` shares; compiles nothing yet."""
        if not end_ids:
            raise ValueError(
                "expected at least one end token, got none; take eos_token_id of the model's "
                "generation_config.json or of its tokenizer"
            )
        self.decoder = decoder
        self.params = params
        self.end_ids = tuple(sorted(set(end_ids)))
        self.pad_id = pad_id

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        on_done: Callable[[int], None] = lambda rows: None,
    ) -> list[list[int]]:
        """The continuation of every prompt, in the order of the prompts.

        Compiles once per prompt length bucket, `batch` and `max_new_tokens`; other calls reuse
        that, whatever the parameters' values, the temperature, nucleus or seed.

        Args:
          prompts: token ids, at least one each.
          max_new_tokens: longest continuation.
          batch: rows computed at once; on a mesh rounded up to divide evenly.
          temperature: logits are divided by this; 0 is greedy.
          top_p: sample among the fewest tokens whose probabilities reach this sum, in (0, 1].
          seed: a prompt's draws depend on this and on its place in `prompts` alone.
          on_done: called with the number of prompts finished after each batch.

        Returns:
          New token ids per prompt, without the end token.

        Raises:
          ValueError: on an empty prompt, on one that with its continuation is longer than the
            model's context, and on arguments out of range.
        """
        self._check(prompts, max_new_tokens, batch, temperature, top_p)
        continuations: list[list[int]] = [[] for _ in prompts]
        batch = even_batch(batch)
        for rows in length_batches([len(prompt) for prompt in prompts], batch):
            tokens, lengths = pad_right([prompts[i] for i in rows], batch, self.pad_id)
            numbers = np.full(batch, -1, np.int32)
            numbers[: len(rows)] = rows
            # NumPy arguments: with several processes each holds them whole.
            output, num_new = _continue(
                self.decoder,
                max_new_tokens,
                self.params,
                np.asarray(self.end_ids, np.int32),
                tokens,
                lengths,
                numbers,
                np.uint32(seed),
                np.float32(temperature),
                np.float32(top_p),
            )
            output, num_new = np.asarray(output), np.asarray(num_new)
            for row, index in enumerate(rows):
                continuations[index] = output[row, : num_new[row]].tolist()
            on_done(len(rows))
        return continuations

    def _check(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        batch: int,
        temperature: float,
        top_p: float,
    ) -> None:
        """Refuses what cannot be generated, before anything is compiled."""
        if max_new_tokens < 1 or batch < 1:
            raise ValueError(
                f"expected max_new_tokens and batch of at least 1, got {max_new_tokens}, {batch}"
            )
        if temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"expected temperature >= 0 and 0 < top_p <= 1, got {temperature}, {top_p}"
            )
        context = self.decoder.settings.max_position_embeddings
        if empty := [i for i, prompt in enumerate(prompts) if not prompt]:
            raise ValueError(f"{len(empty)} prompts have no token, the first is number {empty[0]}")
        if long := [i for i, p in enumerate(prompts) if len(p) + max_new_tokens > context]:
            raise ValueError(
                f"{len(long)} prompts with {max_new_tokens} new tokens exceed the context of "
                f"{context}; the first is number {long[0]} with {len(prompts[long[0]])} tokens: "
                "shorten the prompts or lower max_new_tokens"
            )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _continue(
    decoder: Decoder,
    max_new_tokens: int,
    params: Params,
    end_ids: Int[Array, " ends"],
    tokens: Int[Array, "b t"],
    lengths: Int[Array, " b"],
    numbers: Int[Array, " b"],
    seed: Int[Array, ""],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
) -> tuple[Int[Array, "b t"], Int[Array, " b"]]:
    """New tokens [b, max_new_tokens] and how many of them count, for one padded batch.

    A row's random key comes from its prompt's number, not from its place in the batch; number -1
    is a row that fills the batch and is done from the start.
    """
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), numbers)

    def advance(rows: _Rows, hidden: Float[Array, "b d"], cache: KVCache) -> _Rows:
        logits = decoder.apply({"params": params}, hidden[:, None], method="unembed")[:, 0]
        step_keys = jax.vmap(jax.random.fold_in)(keys, rows.positions)
        chosen = _choose(logits, step_keys, temperature, top_p)
        return _accept(rows._replace(cache=cache), chosen, end_ids)

    def step(rows: _Rows) -> _Rows:
        return advance(rows, *_decode(decoder, params, rows))

    def is_running(rows: _Rows) -> Bool[Array, ""]:
        return ~rows.is_done.all()

    hidden, cache = prefill(decoder, params, tokens, lengths, num_more=max_new_tokens)
    rows = _Rows(
        cache=cache,
        newest=jnp.zeros_like(lengths),
        positions=lengths,
        num_new=jnp.zeros_like(lengths),
        is_done=numbers < 0,
        output=jnp.zeros((tokens.shape[0], max_new_tokens), jnp.int32),
    )
    rows = jax.lax.while_loop(is_running, step, advance(rows, hidden, cache))
    return replicate(rows.output), replicate(rows.num_new)


def _accept(rows: _Rows, chosen: Int[Array, " b"], end_ids: Int[Array, " ends"]) -> _Rows:
    """Writes the chosen tokens to the output of rows that go on, and marks rows that end."""
    is_done = rows.is_done | jnp.isin(chosen, end_ids)
    index = jnp.arange(chosen.shape[0])
    # A finished row's write is aimed outside the output, where it is dropped.
    slot = jnp.where(is_done, rows.output.shape[1], rows.num_new)
    num_new = rows.num_new + (~is_done).astype(jnp.int32)
    return rows._replace(
        newest=chosen,
        positions=rows.positions + 1,
        num_new=num_new,
        is_done=is_done | (num_new == rows.output.shape[1]),
        output=rows.output.at[index, slot].set(chosen, mode="drop"),
    )


def _decode(decoder: Decoder, params: Params, rows: _Rows) -> tuple[Float[Array, "b d"], KVCache]:
    """The state after each row's newest token. Rows that are done compute on, unread."""
    positions = rows.positions[:, None] - 1
    hidden, cache = decoder.apply(
        {"params": params}, rows.newest[:, None], positions, jnp.ones_like(positions), rows.cache
    )
    return hidden[:, 0], cache


def _choose(
    logits: Float[Array, "b v"],
    keys: Key[Array, " b"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
) -> Int[Array, " b"]:
    """The next token of each row: the likeliest at temperature 0, else a nucleus draw."""

    def greedy() -> Int[Array, " b"]:
        return logits.argmax(axis=-1).astype(jnp.int32)

    def draw() -> Int[Array, " b"]:
        nucleus = keep_nucleus(logits / temperature, top_p)
        return jax.vmap(jax.random.categorical)(keys, nucleus).astype(jnp.int32)

    # A branch, not a select: greedy decoding must not pay for sorting the vocabulary.
    return jax.lax.cond(temperature > 0, draw, greedy)


def keep_nucleus(logits: Float[Array, "b v"], top_p: Float[Array, ""]) -> Float[Array, "b v"]:
    """The logits with all but the nucleus at minus infinity.

    The nucleus is the fewest likeliest tokens whose probabilities sum to at least `top_p`; the
    likeliest token is always in it.

    References:
      Holtzman et al., `The Curious Case of Neural Text Degeneration
      <https://arxiv.org/abs/1904.09751>`_, 2020, section 3.1

    Examples:
      >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
      >>> jnp.isfinite(keep_nucleus(logits, jnp.float32(0.6))).tolist()
      [[True, True, False]]
    """
    descending = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(descending, axis=-1)
    sum_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    is_kept = sum_before < top_p
    threshold = jnp.where(is_kept, descending, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf)
