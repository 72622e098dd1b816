"""A conversation with a model in a terminal: the model's own template, tokens as they come."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from medcare_jax.data.chat import Message, encode_prompt, end_token_ids
from medcare_jax.generation.sampler import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from medcare_jax.run.opening import Opened

HELP = """\
/reset         forget the conversation (the system prompt stays)
/system TEXT   forget it and set the system prompt; without TEXT: remove it
/help          show this
/quit          end; so does Ctrl-D. Ctrl-C stops an answer."""
_HALF_CHARACTER = "\ufffd"


class ChatError(ValueError):
    """A message that cannot be answered; the conversation goes on without it."""


@dataclasses.dataclass(frozen=True)
class ChatSettings:
    """How answers are generated; fields as the flags of `tools/chat.py`."""

    system: str = ""
    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.9
    seed: int = 0


class Conversation:
    """The messages so far, and what of them fits the model's context.

    When they no longer fit, the oldest questions are left out with their answers, never the
    system prompt and never the newest question.

    Attributes:
      messages: As chat templates read them.
      num_left_out: Messages that the newest prompt has no room for.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", *, room: int, system: str) -> None:
        """An empty conversation whose prompts may have `room` tokens."""
        self._tokenizer, self._room = tokenizer, room
        self.messages: list[Message] = []
        self.num_left_out = 0
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Forgets all but the system prompt; a text replaces that, an empty one removes it."""
        kept = [each for each in self.messages[:1] if each["role"] == "system"]
        if system is not None:
            kept = [{"role": "system", "content": system}] if system else []
        self.messages, self.num_left_out = kept, 0

    def ask(self, text: str) -> list[int]:
        """Adds a question; returns the tokens of the prompt.

        Raises:
          ChatError: It is too long, or holds a control token; it is not added then.
        """
        system = [each for each in self.messages if each["role"] == "system"]
        turns = [*self.messages[len(system) :], {"role": "user", "content": text}]
        for first in range(0, len(turns), 2):
            try:
                tokens = encode_prompt([*system, *turns[first:]], self._tokenizer).tolist()
            except ValueError as error:
                raise ChatError(str(error)) from error
            if len(tokens) <= self._room:
                self.messages, self.num_left_out = [*system, *turns], first
                return tokens
        raise ChatError(
            f"the message and the system prompt have {len(tokens)} tokens, but the context has "
            f"room for {self._room} beside the answer; shorten it, or lower --max_new_tokens"
        )

    def answer(self, text: str) -> None:
        """Adds the answer to the newest question."""
        self.messages.append({"role": "assistant", "content": text})


def chat(
    opened: "Opened",
    settings: ChatSettings,
    *,
    read: Callable[[], str],
    write: Callable[[str], None],
) -> None:
    """Talks until the person leaves.

    Args:
      opened: The model.
      settings: How it answers.
      read: Returns the next line; raises EOFError at the end, KeyboardInterrupt at Ctrl-C.
      write: Shows a piece of text at once.

    Raises:
      ChatError: `max_new_tokens` leaves no room in the context.
    """
    context = opened.decoder.settings.max_position_embeddings
    if (room := context - settings.max_new_tokens) < 1:
        raise ChatError(
            f"max_new_tokens = {settings.max_new_tokens} leaves no room for a message in the "
            f"context of {context} tokens"
        )
    ends = end_token_ids(opened.tokenizer)
    sampler = Sampler(opened.decoder, opened.params, end_ids=ends, pad_id=ends[0])
    conversation = Conversation(opened.tokenizer, room=room, system=settings.system)
    write(f"{opened.name}, context of {context} tokens. /help shows the commands.\n")
    number = settings.seed
    while (line := _read(read, write)) is not None:
        if line.startswith("/"):
            if not _obey(line, conversation, write):
                return
        elif line:
            _answer(line, conversation, sampler, settings, number, opened.tokenizer, write)
            number += 1


def pieces(tokens: Iterator[int], tokenizer: "PreTrainedTokenizerFast") -> Iterator[str]:
    """Text of tokens as they come; a character of several tokens comes when it is whole."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        if not text.endswith(_HALF_CHARACTER):
            yield text[len(shown) :]
            shown = text
    yield str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))[len(shown) :]


def _read(read: Callable[[], str], write: Callable[[str], None]) -> str | None:
    """The next line without spaces around it, or None if the person leaves."""
    try:
        return read().strip()
    except EOFError:
        write("\n")
        return None
    except KeyboardInterrupt:
        write("\n(/quit or Ctrl-D ends the chat)\n")
        return ""


def _obey(line: str, conversation: Conversation, write: Callable[[str], None]) -> bool:
    """Carries out a command; whether the chat goes on."""
    command, _, rest = line.partition(" ")
    if command == "/quit":
        return False
    if command == "/reset":
        conversation.reset()
        write("(the conversation is forgotten)\n")
    elif command == "/system":
        conversation.reset(rest.strip())
        write("(a new conversation with another system prompt)\n")
    elif command == "/help":
        write(HELP + "\n")
    else:
        write(f"(no command {command}; /help shows those there are)\n")
    return True


def _answer(
    line: str,
    conversation: Conversation,
    sampler: Sampler,
    settings: ChatSettings,
    seed: int,
    tokenizer: "PreTrainedTokenizerFast",
    write: Callable[[str], None],
) -> None:
    """Answers one message."""
    before = list(conversation.messages)
    try:
        prompt = conversation.ask(line)
    except ChatError as error:
        write(f"({error})\n")
        return
    if conversation.num_left_out:
        write(f"(the first {conversation.num_left_out} messages no longer fit the context)\n")
    tokens = sampler.stream(
        prompt,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed,
    )
    said = ""
    try:
        for piece in pieces(tokens, tokenizer):
            said += piece
            write(piece)
        write("\n")
    except KeyboardInterrupt:
        write("\n(stopped)\n")
    if said.strip():
        conversation.answer(said)
    else:
        conversation.messages = before
        write("(no answer)\n")
