"""A decoder behind the interface of lm-evaluation-harness, so that its tasks run on live weights.

Tokens, truncation and stops are those of the harness's own Hugging Face model, so that scores can
be compared; what is computed is `likelihood.py` and the sampler. Needs the extra `lm-eval`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tqdm
from absl import logging
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from transformers import PreTrainedTokenizerFast

from medcare_jax.data.chat import QWEN_TEMPLATE
from medcare_jax.data.templates import render
from medcare_jax.evaluation.likelihood import OptionScore, continuation_scores, rolling_pairs
from medcare_jax.generation.sampler import Sampler
from medcare_jax.models.decoder import Decoder
from medcare_jax.shapes import Params

Pair = tuple[Sequence[int], Sequence[int]]

_KNOWN_SETTINGS = {"do_sample", "temperature", "top_p", "until", "max_gen_toks"}


class DecoderLM(TemplateLM):
    """A decoder with its parameters and tokenizer, as the harness asks for models.

    Attributes:
      tokenizer: Named so by the harness.
      max_length: Most tokens that are read at once; longer contexts lose their beginning.
      batch_size: Rows computed at once.
      max_gen_toks: Longest answer where a task names no length; the harness's own default.
    """

    max_gen_toks = 256

    def __init__(
        self,
        decoder: Decoder,
        params: Params,
        tokenizer: PreTrainedTokenizerFast,
        *,
        batch_size: int = 8,
        max_length: int | None = None,
        end_ids: Collection[int] = (),
    ) -> None:
        """Compiles nothing yet.

        Args:
          decoder: the model.
          params: its parameters.
          tokenizer: its fast tokenizer.
          batch_size: rows computed at once.
          max_length: tokens read at once; None for the model's context.
          end_ids: tokens that end an answer beside the tokenizer's end token.

        Raises:
          ValueError: A length beyond the model's context.
        """
        super().__init__()
        context = decoder.settings.max_position_embeddings
        if max_length is not None and not 1 <= max_length <= context:
            raise ValueError(f"expected max_length from 1 to {context}, got {max_length}")
        self.tokenizer = tokenizer
        self.max_length = max_length or context
        self.batch_size = batch_size
        self._decoder, self._params = decoder, params
        self._sampler = Sampler(
            decoder, params, end_ids=[self.eot_token_id, *end_ids], pad_id=self.eot_token_id
        )

    @property
    def eot_token_id(self) -> int:
        """The token that ends an answer."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps requests apart by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The ids of a text; special tokens are added unless it begins with one already."""
        if add_special_tokens is None:
            prefix = str(self.tokenizer.decode(self.prefix_token_id))
            add_special_tokens = not string.startswith(prefix)
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A dialogue as the model learnt it: by its own template, or by Qwen's if it has none."""
        return render(
            chat_history,
            self.tokenizer,
            self.tokenizer.chat_template or QWEN_TEMPLATE,
            is_prompt=add_generation_prompt,
            is_begun=not add_generation_prompt,
        )

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each whole text, in pieces that fill the context."""
        texts = [request.args[0] for request in requests]
        pieces = [
            rolling_pairs(
                self.tok_encode(text), first=self.prefix_token_id, context=self.max_length
            )
            for text in texts
        ]
        flat = [pair for part in pieces for pair in part]
        scores = iter(self._scores(flat, disable_tqdm))
        totals = [sum(next(scores).log_prob for _ in part) for part in pieces]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context up to the first of its stops."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(place)
        texts = [""] * len(requests)
        with tqdm.tqdm(total=len(requests), desc="generating", disable=disable_tqdm) as bar:
            for places in groups.values():
                settings = requests[places[0]].args[1]
                contexts = [requests[place].args[0] for place in places]
                for place, text in zip(
                    places, self._continue(contexts, settings, bar.update), strict=True
                ):
                    texts[place] = text
                    self.cache_hook.add_partial("generate_until", requests[place].args, text)
        return texts

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Scores of tokenised pairs; what is too long loses its beginning."""
        pairs = []
        # The last token is read by nobody, so one more than the context holds will do.
        room = self.max_length + 1
        for _, context, continuation in requests:
            whole = (context + continuation)[-room:]
            pairs.append((whole[: -len(continuation)], continuation))
        self._say_cut([len(context) + len(answer) - room for _, context, answer in requests])
        scores = self._scores(pairs, disable_tqdm)
        answers = [(score.log_prob, score.is_greedy) for score in scores]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _say_cut(self, excess: Sequence[int]) -> None:
        """Warns of requests that lose their beginning, by how much each is too long."""
        if num_cut := sum(tokens > 0 for tokens in excess):
            logging.warning(
                "%d of %d requests lose their beginning, up to %d tokens: only %d are read at once",
                *(num_cut, len(excess), max(excess), self.max_length),
            )

    def _scores(self, pairs: Sequence[Pair], is_quiet: bool) -> list[OptionScore]:
        """Scores of (context, continuation) pairs, in their order."""
        with tqdm.tqdm(total=len(pairs), desc="scoring", disable=is_quiet) as bar:
            return continuation_scores(
                self._decoder, self._params, pairs, batch=self.batch_size, on_done=bar.update
            )

    def _continue(
        self, contexts: Sequence[str], settings: Mapping[str, Any], on_done: Any
    ) -> list[str]:
        """Continuations under the same settings."""
        known: dict[str, Any] = {**normalize_gen_kwargs(dict(settings), self.max_gen_toks)}
        if unknown := known.keys() - _KNOWN_SETTINGS:
            raise ValueError(
                f"the task asks to generate with {', '.join(sorted(unknown))}, which is not "
                f"implemented; known are {', '.join(sorted(_KNOWN_SETTINGS))}"
            )
        most = known["max_gen_toks"]
        room = self.max_length - most
        if room < 1:
            raise ValueError(
                f"the task asks for {most} new tokens, but the context holds {self.max_length}; "
                f"pass --gen_kwargs max_gen_toks=N with N below {self.max_length}"
            )
        prompts = [self.tok_encode(context) for context in contexts]
        self._say_cut([len(prompt) - room for prompt in prompts])
        rows = self._sampler.generate(
            [prompt[-room:] for prompt in prompts],
            max_new_tokens=most,
            batch=self.batch_size,
            temperature=known.get("temperature", 0.0) if known["do_sample"] else 0.0,
            top_p=known.get("top_p", 1.0),
            on_done=on_done,
        )
        end = str(self.tokenizer.decode(self.eot_token_id))
        stops = handle_stop_sequences(known["until"], eos=end)
        return [
            postprocess_generated_text(
                str(self.tokenizer.decode(row, skip_special_tokens=True)), stops, None
            )
            for row in rows
        ]
