"""Dialogues to token ids and a mask of the tokens to learn.

Two kinds of targets are known. ``assistant`` learns what the assistant says and the token that ends
it, whatever the tokenizer's chat template looks like. ``reference`` is the published recipe of
MedCare: Qwen's chat format, whose markers are learnt in every turn, system and user included.

A dialogue is tokenised in pieces, cut where targets begin and end. So the tokens before an answer
are the very ones that stand before it when the model generates, and no token is half a target. A
template that asks for today is told the same day always, `templates.DAY`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32
from transformers import PreTrainedTokenizerFast

from medcare_jax.data.records import Record, RecordError, Turn
from medcare_jax.data.templates import Message, TemplateRefusal, render

__all__ = [
    "QWEN_TEMPLATE",
    "SYSTEM_PROMPT",
    "TARGETS",
    "Example",
    "Message",
    "count_leading_turns",
    "encode_dialogue",
    "encode_dialogues",
    "encode_prompt",
    "end_token_ids",
    "to_messages",
    "tokenizer_digest",
]

TARGETS = ("assistant", "reference")
SYSTEM_PROMPT = "You are a helpful assistant."
START, END = "<|im_start|>", "<|im_end|>"
QWEN_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    f"{{{{ '{START}system\\n{SYSTEM_PROMPT}{END}\\n' }}}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    f"{{{{ '{START}' + message['role'] + '\\n' + message['content'] + '{END}\\n' }}}}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{ '{START}assistant\\n' }}}}{{%- endif -%}}"
)
_CHAT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}

Piece = tuple[str, bool]  # text, and whether its tokens are targets


class Example(NamedTuple):
    """One tokenised dialogue of n tokens.

    Attributes:
      tokens: Ids, int32 ``[n]``.
      is_target: Whether a token is to be learnt, bool ``[n]``: where Hugging Face's label is not
        -100. The first token has no predecessor, so it never adds to a loss.
    """

    tokens: Int32[np.ndarray, " n"]
    is_target: Bool[np.ndarray, " n"]


def encode_dialogue(
    record: Record,
    tokenizer: PreTrainedTokenizerFast,
    *,
    targets: str = "assistant",
    template: str | None = None,
) -> Example:
    """Returns the tokens and the target mask of one dialogue.

    Args:
      record: The dialogue.
      tokenizer: A fast tokenizer.
      targets: ``"assistant"`` or ``"reference"``, as this file's first lines say.
      template: A Jinja chat template for ``"assistant"``; by default the tokenizer's own, or
        `QWEN_TEMPLATE` for a tokenizer without one. ``"reference"`` has its own fixed format.

    Raises:
      RecordError: A turn holds a control token, or the template fails on it or cannot show where
        it ends.
      ValueError: ``targets`` is unknown, the tokenizer lacks what the format needs, or its template
        is no Jinja.
    """
    (example,) = encode_dialogues([record], tokenizer, targets=targets, template=template)
    if isinstance(example, RecordError):
        raise example
    return example


def encode_dialogues(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerFast,
    *,
    targets: str = "assistant",
    template: str | None = None,
) -> list[Example | RecordError]:
    """Returns for each dialogue its example, or the error it deserves, in one tokenizer call.

    Arguments and errors are those of `encode_dialogue`, which raises what is returned here.
    """
    if targets not in TARGETS:
        raise ValueError(f"targets must be one of {TARGETS}, got {targets!r}")
    _check_pieces_join(tokenizer)
    if targets == "reference":
        _check_qwen_markers(tokenizer)
    template = template or _template_of(tokenizer)
    control = _control_tokens(tokenizer)
    rendered: list[list[Piece] | RecordError] = []
    for record in records:
        try:
            _refuse_control_tokens(record, control)
            pieces = (
                _reference_pieces(record)
                if targets == "reference"
                else _assistant_pieces(record, tokenizer, template, control)
            )
            rendered.append(list(pieces))
        except RecordError as error:
            rendered.append(error)
    return _tokenised(rendered, tokenizer)


def encode_prompt(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerFast,
    *,
    template: str | None = None,
) -> Int32[np.ndarray, " n"]:
    """Returns the tokens of a dialogue up to where the assistant is to go on.

    Args:
      messages: ``{"role": "system" | "user" | "assistant", "content": text}`` each; see
        `to_messages`.
      tokenizer: A fast tokenizer.
      template: As in `encode_dialogue`.

    Raises:
      ValueError: A message holds a control token, the template refuses the messages, or it is no
        Jinja.
    """
    control = _control_tokens(tokenizer)
    if any(control.search(message["content"]) for message in messages):
        raise ValueError("expected plain text in every message, got a control token in one")
    text = render(messages, tokenizer, template or _template_of(tokenizer), is_prompt=True)
    return np.array(_ids([text], tokenizer)[0], np.int32)


def end_token_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The ids that end an answer: every control token, since an answer is plain text.

    It is the rule by which training targets end, so a model that learnt to stop is seen to.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(sorted(special | set(tokenizer.all_special_ids)))


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """The sha256 over all that makes tokens of messages: the tokenizer, its chat template.

    The template itself is taken and not what it renders.
    """
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("truncation", "padding"):  # each call sets them anew
        inner.pop(name, None)
    content = [inner, tokenizer.chat_template, tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def to_messages(turns: Sequence[Turn]) -> list[Message]:
    """Returns turns in the form that chat templates read.

    Examples:
      >>> to_messages([Turn("human", "Fever?")])
      [{'role': 'user', 'content': 'Fever?'}]
    """
    return [{"role": _CHAT_ROLES[turn.role], "content": turn.text} for turn in turns]


def count_leading_turns(record: Record) -> int:
    """Returns how many gpt turns stand before the first human one.

    They answer nothing, so they are left out of the example, as in the reference.
    """
    roles = [turn.role for turn in record.turns if turn.role != "system"]
    return roles.index("human")


def _split(record: Record) -> tuple[list[Turn], list[tuple[int, Turn]]]:
    """The system turn if any, and the turns from the first human one on with their places."""
    places = list(enumerate(record.turns))
    system = [turn for turn in record.turns[:1] if turn.role == "system"]
    return system, places[len(system) + count_leading_turns(record) :]


def _reference_pieces(record: Record) -> Iterator[Piece]:
    """The reference's format, in the pieces in which it is tokenised there."""
    system, turns = _split(record)
    yield from ((START, True), ("system\n", False))
    yield from ((system[0].text if system else SYSTEM_PROMPT, False), (f"{END}\n", True))
    for _, turn in turns:
        yield from ((START, True), (f"{_CHAT_ROLES[turn.role]}\n", False))
        yield from ((turn.text, turn.role == "gpt"), (f"{END}\n", True))


def _assistant_pieces(
    record: Record, tokenizer: PreTrainedTokenizerFast, template: str, control: re.Pattern[str]
) -> Iterator[Piece]:
    """The template's text, cut where an answer begins and behind the token that ends it."""
    system, turns = _split(record)
    messages = to_messages([*system, *(turn for _, turn in turns)])

    def shown(count: int, *, is_prompt: bool) -> str:
        """The first messages, or the error that names this record."""
        try:
            return render(messages[:count], tokenizer, template, is_prompt=is_prompt)
        except TemplateRefusal as error:
            raise RecordError(record.location, "conversations", str(error)) from None

    text, done = shown(len(messages), is_prompt=False), 0
    for count, (place, turn) in enumerate(turns, len(system)):
        if turn.role != "gpt":
            continue
        prompt = shown(count, is_prompt=True)
        end = control.search(text, len(prompt))
        answer = text[len(prompt) : end.start()] if end else ""
        if not (end and text.startswith(prompt) and turn.text.strip() in answer):
            problem = "the chat template does not show this turn between prompt and control token"
            raise RecordError(record.location, f"conversations[{place}]", problem)
        yield from ((text[done : len(prompt)], False), (text[len(prompt) : end.end()], True))
        done = end.end()
    yield text[done:], False


def _tokenised(
    rendered: Sequence[list[Piece] | RecordError], tokenizer: PreTrainedTokenizerFast
) -> list[Example | RecordError]:
    """Tokenises the pieces of all dialogues together, and joins them again."""
    texts = (text for item in rendered if not isinstance(item, RecordError) for text, _ in item)
    ids = iter(_ids(list(texts), tokenizer))
    examples: list[Example | RecordError] = []
    for item in rendered:
        if isinstance(item, RecordError):
            examples.append(item)
            continue
        parts = [next(ids) for _ in item]
        flags = np.repeat([is_target for _, is_target in item], [len(part) for part in parts])
        examples.append(Example(np.fromiter(chain.from_iterable(parts), np.int32), flags))
    return examples


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """The ids of each text; the template alone says which special tokens there are."""
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _template_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """The tokenizer's own template, or Qwen's."""
    if tokenizer.chat_template is not None:
        template: str = tokenizer.get_chat_template()
        return template
    _check_qwen_markers(tokenizer)
    return QWEN_TEMPLATE


def _control_tokens(tokenizer: PreTrainedTokenizerFast) -> re.Pattern[str]:
    """Finds the special tokens of a tokenizer in a text."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    tokens = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    if not tokens:
        raise ValueError("expected a tokenizer with special tokens, got one without any")
    return re.compile("|".join(map(re.escape, tokens)))


def _refuse_control_tokens(record: Record, control: re.Pattern[str]) -> None:
    """A control token inside a text could end a turn or forge one."""
    for place, turn in enumerate(record.turns):
        if control.search(turn.text):
            problem = "expected plain text, got a control token of the tokenizer in it"
            raise RecordError(record.location, f"conversations[{place}].value", problem)


def _check_qwen_markers(tokenizer: PreTrainedTokenizerFast) -> None:
    """Qwen's format needs its markers as single tokens."""
    if [len(ids) for ids in _ids([START, END], tokenizer)] != [1, 1]:
        raise ValueError(
            f"Qwen's chat format needs {START} and {END} as single tokens, which this tokenizer "
            "lacks; use one with them, or for targets='assistant' one with a chat_template"
        )


def _check_pieces_join(tokenizer: PreTrainedTokenizerFast) -> None:
    """Some SentencePiece tokenizers mark the beginning of a text, and so of every piece."""
    line_feed, letter, together = _ids(["\n", "x", "\nx"], tokenizer)
    if line_feed + letter != together:
        raise ValueError(
            "expected a tokenizer whose pieces join to the whole (byte-level BPE: Qwen, Llama 3, "
            "SmolLM2); this one marks the beginning of every text"
        )
