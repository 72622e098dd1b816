"""A batch of slots, each at work on a prompt of its own: all that is compiled of generation.

A prompt goes once through the decoder and its keys and values into a free slot of the cache; then
all slots take one token per step, on the device, until enough of them are done for new prompts to
take their places. Each row counts its own positions and draws with a key of its own prompt, so a
continuation does not depend on neighbours, on the slot or on when the prompt came into it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medcare_jax.generation.choosing import choose
from medcare_jax.generation.placement import replicate, shard_cache
from medcare_jax.generation.prefill import prefill
from medcare_jax.models.attention import KVCache, make_cache, write_slots
from medcare_jax.models.decoder import Decoder
from medcare_jax.settings import DTYPES
from medcare_jax.shapes import Params, Tokens


class Rules(NamedTuple):
    """How tokens are chosen and when a row ends; values that compiled functions take."""

    end_ids: Int[Array, " ends"]
    max_new_tokens: Int[Array, ""]
    seed: Int[Array, ""]
    temperature: Float[Array, ""]
    top_p: Float[Array, ""]


class Rows(NamedTuple):
    """How far each row has come; every field may differ per row.

    Attributes:
      numbers: of the prompt, which its random draws depend on.
      newest: the token chosen last, not yet in the cache.
      positions: where the token after it will stand.
      num_new: tokens written to `output`.
      is_done: whether the row has met an end token or its budget; also a slot never filled.
      output: new tokens, without the end token.
    """

    numbers: Int[Array, " b"]
    newest: Int[Array, " b"]
    positions: Int[Array, " b"]
    num_new: Int[Array, " b"]
    is_done: Bool[Array, " b"]
    output: Int[Array, "b t"]


class Slots(NamedTuple):
    """Rows and the cache that they read."""

    rows: Rows
    cache: KVCache

    @property
    def capacity(self) -> int:
        """Tokens of a row that the cache has room for."""
        return int(self.cache.segments.shape[1])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty_slots(decoder: Decoder, batch: int, capacity: int, width: int) -> Slots:
    """Slots that nothing is in yet, for outputs of up to `width` tokens."""
    dtype = DTYPES[decoder.compute.dtype]
    rows = _fresh_rows(jnp.full(batch, -1), jnp.ones(batch, jnp.int32), width)
    rows = rows._replace(is_done=jnp.ones(batch, bool))
    return _placed(rows, make_cache(decoder.settings, batch, capacity, dtype))


@functools.partial(jax.jit, static_argnums=0)
def read_prompts(
    decoder: Decoder,
    params: Params,
    tokens: Tokens,
    lengths: Int[Array, " p"],
    numbers: Int[Array, " p"],
    rules: Rules,
) -> tuple[Int[Array, " p"], KVCache]:
    """The first new token of each prompt, and the prompts' keys and values."""
    hidden, cache = prefill(decoder, params, tokens, lengths)
    return replicate(_next(decoder, params, hidden, numbers, lengths, rules)), cache


@functools.partial(jax.jit, donate_argnums=0)
def admit(
    slots: Slots,
    places: Int[Array, " p"],
    lengths: Int[Array, " p"],
    numbers: Int[Array, " p"],
    first: Int[Array, " p"],
    prompts: KVCache,
    rules: Rules,
) -> Slots:
    """Puts what `read_prompts` made into the slots `places`; nowhere if a place is no slot."""
    new = _accept(_fresh_rows(numbers, lengths, slots.rows.output.shape[1]), first, rules)
    rows = jax.tree.map(lambda old, now: old.at[places].set(now, mode="drop"), slots.rows, new)
    width, cache = prompts.segments.shape[1], slots.cache
    rest = slots.capacity - width
    cache = KVCache(
        cache.keys.at[:, places, :, :width].set(prompts.keys, mode="drop"),
        cache.values.at[:, places, :, :width].set(prompts.values, mode="drop"),
        cache.segments.at[places].set(jnp.pad(prompts.segments, ((0, 0), (0, rest))), mode="drop"),
    )
    return _placed(rows, cache)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(
    decoder: Decoder,
    params: Params,
    slots: Slots,
    rules: Rules,
    steps: Int[Array, ""],
    enough: Int[Array, ""],
) -> Slots:
    """Up to `steps` more tokens per row; ends as soon as `enough` rows are done."""

    def is_running(state: tuple[Array, Slots]) -> Bool[Array, ""]:
        return (state[0] < steps) & (state[1].rows.is_done.sum() < enough)

    def step(state: tuple[Array, Slots]) -> tuple[Array, Slots]:
        return state[0] + 1, _step(decoder, params, state[1], rules)

    rows, cache = jax.lax.while_loop(is_running, step, (jnp.int32(0), slots))[1]
    return _placed(rows, cache)


@functools.partial(jax.jit, static_argnums=1)
def resize(slots: Slots, capacity: int) -> Slots:
    """The same rows with a cache of another capacity, which must hold them."""
    more = max(0, capacity - slots.capacity)

    def fit(leaf: Array, axis: int) -> Array:
        widths = [(0, more if i == axis else 0) for i in range(leaf.ndim)]
        return jax.lax.slice_in_dim(jnp.pad(leaf, widths), 0, capacity, axis=axis)

    cache = slots.cache
    return _placed(
        slots.rows, KVCache(fit(cache.keys, 3), fit(cache.values, 3), fit(cache.segments, 1))
    )


def _step(decoder: Decoder, params: Params, slots: Slots, rules: Rules) -> Slots:
    """One more token per row. Rows that are done compute on, unread, and stay where they are."""
    rows, cache = slots
    positions = rows.positions[:, None] - 1
    hidden, new = decoder.apply(
        {"params": params}, rows.newest[:, None], positions, jnp.ones_like(positions), cache
    )
    chosen = _next(decoder, params, hidden[:, 0], rows.numbers, rows.positions, rules)
    return Slots(_accept(rows, chosen, rules), write_slots(cache, positions, new))


def _next(
    decoder: Decoder,
    params: Params,
    hidden: Float[Array, "b d"],
    numbers: Int[Array, " b"],
    positions: Int[Array, " b"],
    rules: Rules,
) -> Int[Array, " b"]:
    """The token chosen for each row; its key is of its prompt and its position, of nothing else."""
    logits = decoder.apply({"params": params}, hidden[:, None], method="unembed")[:, 0]
    fold_in = jax.vmap(jax.random.fold_in)
    keys = fold_in(jnp.broadcast_to(jax.random.key(rules.seed), numbers.shape), numbers)
    return choose(logits, fold_in(keys, positions), rules.temperature, rules.top_p)


def _fresh_rows(numbers: Int[Array, " b"], lengths: Int[Array, " b"], width: int) -> Rows:
    """Rows that have read their prompts and chosen nothing yet."""
    zeros = jnp.zeros_like(lengths)
    output = jnp.zeros((len(lengths), width), jnp.int32)
    return Rows(numbers, zeros, lengths, zeros, jnp.zeros(len(lengths), bool), output)


def _accept(rows: Rows, chosen: Int[Array, " b"], rules: Rules) -> Rows:
    """Writes the chosen tokens to the output of rows that go on, and marks rows that end."""
    is_done = rows.is_done | jnp.isin(chosen, rules.end_ids)
    index, goes_on = jnp.arange(chosen.shape[0]), (~is_done).astype(jnp.int32)
    # A finished row's write is aimed outside the output, where it is dropped.
    place = jnp.where(is_done, rows.output.shape[1], rows.num_new)
    num_new = rows.num_new + goes_on
    return rows._replace(
        newest=chosen,
        positions=rows.positions + goes_on,
        num_new=num_new,
        is_done=is_done | (num_new >= rules.max_new_tokens),
        output=rows.output.at[index, place].set(chosen, mode="drop"),
    )


def _placed(rows: Rows, cache: KVCache) -> Slots:
    """Slots where they belong on the mesh, so that every function finds them as it left them."""
    return Slots(jax.tree.map(replicate, rows), shard_cache(cache))
