"""Token by token continuation of many prompts: which prompt is in which slot, and when.

Prompts go longest first into the slots of one batch; when a quarter of the slots is done, the next
prompts take their places. The cache is as long as the rows in it need, in buckets, so memory
depends on the batch and the longest row and not on the number of prompts.
"""

import collections
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from medcare_jax.generation.buckets import bucket_length, pad_right
from medcare_jax.generation.placement import even_batch
from medcare_jax.generation.slots import (
    Rules,
    Slots,
    admit,
    advance,
    empty_slots,
    read_prompts,
    resize,
)
from medcare_jax.models.decoder import Decoder
from medcare_jax.shapes import Params

_STEPS = 32  # tokens between two looks of the host at the rows
_SHORTEST_CACHE = 64


class Continuation(NamedTuple):
    """What a prompt has got so far.

    Attributes:
      index: of the prompt in the list given.
      tokens: new ids, without the end token.
      is_done: whether that is all.
    """

    index: int
    tokens: list[int]
    is_done: bool


class Sampler:
    """Continues prompts with a decoder, greedily or by temperature and nucleus sampling.

    Compiles once per bucket of prompt length, bucket of cache length and `batch`; calls reuse
    that, whatever the parameters' values, the number of prompts, the temperature, nucleus, seed,
    and, within a bucket, `max_new_tokens`.

    Attributes:
      decoder: the model; its adapters and components are part of what is compiled.
      params: its parameters, an argument of the compiled functions and never a constant of them.
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

        Args:
          prompts: token ids, at least one each.
          max_new_tokens: longest continuation.
          batch: slots computed at once; on a mesh rounded up to divide evenly.
          temperature: logits are divided by this; 0 is greedy.
          top_p: sample among the fewest tokens whose probabilities reach this sum, in (0, 1].
          seed: a prompt's draws depend on this and on its place in `prompts` alone.
          on_done: called with the number of prompts just finished.

        Returns:
          New token ids per prompt, without the end token.

        Raises:
          ValueError: on an empty prompt, on one that with its continuation is longer than the
            model's context, and on arguments out of range.
        """
        continuations: list[list[int]] = [[] for _ in prompts]
        for index, tokens in self.finished(
            prompts,
            max_new_tokens=max_new_tokens,
            batch=batch,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        ):
            continuations[index] = tokens
            on_done(1)
        return continuations

    def finished(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[int]]]:
        """Index and continuation of every prompt, each as soon as it is done.

        Arguments and errors are those of `generate`. With `numbers` a prompt's draws depend on
        its number in place of its index, so that prompts left over from an earlier call are
        continued as they would have been there.
        """
        rules = self._rules(max_new_tokens, batch, temperature, top_p, seed)
        self._check(prompts, max_new_tokens)
        rounds = self._rounds(prompts, numbers or range(len(prompts)), batch, rules, _STEPS)
        return ((each.index, each.tokens) for each in rounds if each.is_done)

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """The tokens of one continuation, each as soon as it is chosen; as `generate` else."""
        rules = self._rules(max_new_tokens, 1, temperature, top_p, seed)
        self._check([prompt], max_new_tokens)
        sent = 0
        for each in self._rounds([prompt], [0], 1, rules, 1):
            yield from each.tokens[sent:]
            sent = len(each.tokens)

    def _rounds(
        self,
        prompts: Sequence[Sequence[int]],
        numbers: Sequence[int],
        batch: int,
        rules: Rules,
        steps: int,
    ) -> Iterator[Continuation]:
        """What every row has got, after every `steps` tokens or earlier."""
        batch, group = even_batch(batch), even_batch(-(-batch // 4))
        waiting = collections.deque(
            sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        )
        held: dict[int, int] = {}  # prompt by slot
        lengths: dict[int, int] = {}  # tokens by slot, new ones included
        slots: Slots | None = None
        while waiting or held:
            while waiting and (len(held) + min(group, len(waiting)) <= batch or not held):
                chosen = [waiting.popleft() for _ in range(min(group, len(waiting)))]
                free = [slot for slot in range(batch) if slot not in held][: len(chosen)]
                longest = max(len(prompts[i]) for i in chosen) + 1
                slots = self._fit(slots, batch, [*lengths.values(), longest], steps, rules)
                slots = self._admit(slots, free, [prompts[i] for i in chosen],
                                    [numbers[i] for i in chosen], group, rules)  # fmt: skip
                held |= dict(zip(free, chosen, strict=True))
                lengths |= {slot: len(prompts[held[slot]]) + 1 for slot in free}
            assert slots is not None
            slots = self._fit(slots, batch, list(lengths.values()), steps, rules)
            # Slots that are free already count as done.
            enough = min(group, len(waiting)) if waiting else batch
            slots = advance(
                self.decoder, self.params, slots, rules, np.int32(steps), np.int32(enough)
            )
            rows = slots.rows
            output, counts, is_done = map(np.asarray, (rows.output, rows.num_new, rows.is_done))
            for slot, index in list(held.items()):
                lengths[slot] = len(prompts[index]) + int(counts[slot]) + 1
                if is_done[slot]:
                    del held[slot], lengths[slot]
                tokens = output[slot, : counts[slot]].tolist()
                yield Continuation(index, tokens, bool(is_done[slot]))

    def _fit(
        self, slots: Slots | None, batch: int, lengths: Sequence[int], steps: int, rules: Rules
    ) -> Slots:
        """Slots whose cache holds rows of these lengths and `steps` tokens more."""
        capacity = bucket_length(max(lengths) + steps, minimum=_SHORTEST_CACHE)
        if slots is None:
            width = bucket_length(int(rules.max_new_tokens))
            return empty_slots(self.decoder, batch, capacity, width)
        return slots if slots.capacity == capacity else resize(slots, capacity)

    def _admit(
        self,
        slots: Slots,
        places: Sequence[int],
        prompts: Sequence[Sequence[int]],
        numbers: Sequence[int],
        group: int,
        rules: Rules,
    ) -> Slots:
        """Reads up to `group` prompts into slots."""
        tokens, lengths = pad_right(prompts, group, self.pad_id)
        # NumPy arguments: with several processes each holds them whole.
        where, who = np.full((2, group), [[len(slots.rows.is_done)], [-1]], np.int32)
        where[: len(places)], who[: len(numbers)] = places, numbers
        first, cache = read_prompts(self.decoder, self.params, tokens, lengths, who, rules)
        return admit(slots, where, lengths, who, first, cache, rules)

    def _rules(
        self, max_new_tokens: int, batch: int, temperature: float, top_p: float, seed: int
    ) -> Rules:
        """The arguments that compiled functions take, if they make sense."""
        if max_new_tokens < 1 or batch < 1:
            raise ValueError(
                f"expected max_new_tokens and batch of at least 1, got {max_new_tokens}, {batch}"
            )
        if temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"expected temperature >= 0 and 0 < top_p <= 1, got {temperature}, {top_p}"
            )
        if not 0 <= seed < 2**32:
            raise ValueError(f"expected a seed from 0 to {2**32 - 1}, got {seed}")
        return Rules(
            np.asarray(self.end_ids, np.int32),
            np.int32(max_new_tokens),
            np.uint32(seed),
            np.float32(temperature),
            np.float32(top_p),
        )

    def _check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Refuses prompts that cannot be continued, before anything is compiled."""
        context = self.decoder.settings.max_position_embeddings
        if empty := [i for i, prompt in enumerate(prompts) if not prompt]:
            raise ValueError(f"{len(empty)} prompts have no token, the first is number {empty[0]}")
        if long := [i for i, p in enumerate(prompts) if len(p) + max_new_tokens > context]:
            raise ValueError(
                f"{len(long)} prompts with {max_new_tokens} new tokens exceed the context of "
                f"{context}; the first is number {long[0]} with {len(prompts[long[0]])} tokens: "
                "shorten the prompts or lower max_new_tokens"
            )
