"""Answers to a file of prompts: read, generated and written so that a stopped run goes on.

Each line of the input (or element of a JSON list) is one of

    {"id"?: "a1", "prompt": "What is asthma?"}
    {"id"?: "a1", "messages": [{"role": "system" | "user" | "assistant", "content": "..."}, ...]}
    {"id"?: "a1", "conversations": [...]}                                        MedCareData's

where the answers that a dialogue ends with are left out. The output has a line for each, in their
order: `{"id": ..., "output": text, "tokens": number}`, and `"skipped": reason` where there is no
output. Until all are done, finished lines stand in `OUTPUT.part`, which only its owner can read.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from medcare_jax.data.chat import encode_prompt, end_token_ids
from medcare_jax.data.records import NOT_TEXT, RecordError, is_text
from medcare_jax.data.scanning import scan_json
from medcare_jax.evaluation.items import read_id
from medcare_jax.files import PRIVATE, file_digest, open_own, write_text
from medcare_jax.generation.sampler import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from medcare_jax.models.decoder import Decoder
    from medcare_jax.shapes import Params

OVER_LONG = ("error", "skip", "cut")
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant",
          "gpt": "assistant"}  # fmt: skip


class PromptsError(ValueError):
    """Prompts that cannot be answered as asked, or a half-done output of another request."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """How answers are generated.

    Attributes:
      max_new_tokens: Longest answer.
      batch: Prompts at once.
      temperature: 0 is greedy.
      top_p: Size of the nucleus.
      seed: Of the draws.
      over_long: What is done with a prompt that with its answer exceeds the model's context:
        `error` (before anything is generated), `skip`, or `cut` (its first tokens are dropped).
    """

    max_new_tokens: int = 256
    batch: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    over_long: str = "error"

    def __post_init__(self) -> None:
        if self.over_long not in OVER_LONG:
            raise PromptsError(
                f"over_long = {self.over_long!r}; allowed are {', '.join(OVER_LONG)}"
            )


class Counts(NamedTuple):
    """What came of a file of prompts."""

    prompts: int
    resumed: int
    cut: int
    skipped: int
    tokens: int


class Prompt(NamedTuple):
    """One prompt: its id, its tokens, and whether they were cut (None: left out, too long)."""

    id: str
    tokens: list[int]
    is_cut: bool | None


def answer_file(
    source: pathlib.Path,
    target: pathlib.Path,
    decoder: "Decoder",
    params: "Params",
    tokenizer: "PreTrainedTokenizerFast",
    *,
    model: str,
    generation: Generation,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Counts:
    """Answers every prompt of a file; called again after a stop it goes on where it was.

    Args:
      source: JSON Lines or a JSON list of prompts, as this file's first lines say.
      target: JSON Lines to write, whole or not at all.
      decoder: The model.
      params: Its parameters.
      tokenizer: Its fast tokenizer, with the chat template that it was trained on.
      model: What stands for the model: a half-done output of another one is refused.
      generation: How.
      on_done: Told how many of how many prompts are done.

    Raises:
      RecordError: A bad prompt, with file and line; nothing is generated then.
      PromptsError: Over-long prompts with `error`; `TARGET.part` of another request, or in use.
      FileNotFoundError: No such source.
    """
    context = decoder.settings.max_position_embeddings
    prompts = read_prompts(source, tokenizer, generation, context)
    settings = dataclasses.asdict(generation) | {"batch": None}
    asked = json.dumps([file_digest(source), model, settings], sort_keys=True)
    with contextlib.closing(_Part(target, hashlib.sha256(asked.encode()).hexdigest())) as part:
        resumed = len(part.lines)
        left = _note_skipped(prompts, part)
        ends = end_token_ids(tokenizer)
        rows = Sampler(decoder, params, end_ids=ends, pad_id=ends[0]).finished(
            [prompts[number].tokens for number in left],
            max_new_tokens=generation.max_new_tokens,
            batch=generation.batch,
            temperature=generation.temperature,
            top_p=generation.top_p,
            seed=generation.seed,
            numbers=left,
        )
        for index, tokens in rows:
            text = str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
            line = {"id": prompts[left[index]].id, "output": text, "tokens": len(tokens)}
            part.add(left[index], line)
            on_done(len(part.lines), len(prompts))
        written = part.finish()
    return Counts(
        prompts=len(prompts),
        resumed=resumed,
        cut=sum(bool(prompt.is_cut) for prompt in prompts),
        skipped=sum(prompt.is_cut is None for prompt in prompts),
        tokens=sum(line.get("tokens", 0) for line in written),
    )


def _note_skipped(prompts: Sequence[Prompt], part: "_Part") -> list[int]:
    """Writes a line for each prompt that is left out; which are still to be answered."""
    for number, prompt in enumerate(prompts):
        if prompt.is_cut is None and number not in part.lines:
            part.add(number, {"id": prompt.id, "output": None, "skipped": "longer than context"})
    return [number for number in range(len(prompts)) if number not in part.lines]


def read_prompts(
    source: pathlib.Path,
    tokenizer: "PreTrainedTokenizerFast",
    generation: Generation,
    context: int,
) -> list[Prompt]:
    """The prompts of a file as tokens, over-long ones treated as `generation.over_long` says."""
    room = context - generation.max_new_tokens
    if room < 1:
        raise PromptsError(
            f"max_new_tokens = {generation.max_new_tokens} leaves no room for a prompt in the "
            f"model's context of {context} tokens"
        )
    prompts, long, seen = [], [], {}
    for number, (location, item) in enumerate(scan_json(source), 1):
        if isinstance(item, RecordError):
            raise item
        name, messages = _messages(item, location)
        if name == location and location in seen:  # a list on one line, without ids
            name = f"{location}#{number}"
        if name in seen:
            raise RecordError(location, "id", f"expected its own, got the one of {seen[name]}")
        seen[name] = location
        try:
            tokens = encode_prompt(messages, tokenizer).tolist()
        except ValueError as error:
            raise RecordError(location, "", str(error)) from error
        is_long = len(tokens) > room
        if is_long:
            long.append(f"{location} ({len(tokens)} tokens)")
        is_left_out = is_long and generation.over_long == "skip"
        prompts.append(Prompt(name, tokens[-room:], None if is_left_out else is_long))
    if long and generation.over_long == "error":
        raise PromptsError(
            f"{len(long)} prompts are longer than the {room} tokens that the context of {context} "
            f"leaves beside max_new_tokens; the first is {long[0]}. Shorten them or leave them "
            "out, or lower max_new_tokens"
        )
    return prompts


def _messages(item: Any, location: str) -> tuple[str, list[dict[str, str]]]:
    """Id and messages of one line, in whichever of the three layouts."""
    kinds = ("prompt", "messages", "conversations")
    found = [kind for kind in kinds if isinstance(item, dict) and kind in item]
    if len(found) != 1:
        raise RecordError(location, "", f"expected an object with one of {', '.join(kinds)}")
    if not is_text(item):
        raise RecordError(location, "", NOT_TEXT)
    name = read_id(item.get("id"), location, location, "id")
    if found == ["prompt"]:
        turns: Sequence[Any] = [{"role": "user", "content": item["prompt"]}]
    else:
        turns = item[found[0]] if isinstance(item[found[0]], list) else []
    messages = [_message(turn, f"{found[0]}[{i}]", location) for i, turn in enumerate(turns)]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        raise RecordError(location, found[0], "expected a user's turn to answer, got none")
    return name, messages


def _message(turn: Any, field: str, location: str) -> dict[str, str]:
    """One turn as chat templates read it."""
    turn = turn if isinstance(turn, Mapping) else {}
    role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    texts = isinstance(role, str) and isinstance(text, str)
    if not texts or role not in _ROLES or not text.strip():
        roles = ", ".join(_ROLES)
        raise RecordError(location, field, f"expected text, and a role among {roles}")
    return {"role": _ROLES[role], "content": text}


class _Part:
    """Finished lines on disk, in the order in which they came, until all are there."""

    def __init__(self, target: pathlib.Path, key: str) -> None:
        """Opens or begins `TARGET.part`."""
        self._target, self._path = target, target.with_name(f"{target.name}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        self.lines: dict[int, dict[str, Any]] = {}
        self._file = open_own(self._path, mode=PRIVATE)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise PromptsError(
                f"{self._path} is being written by another process; wait for it, or choose "
                "another output"
            ) from None
        try:
            self._read(key)
        except PromptsError:
            self.close()
            raise

    def _read(self, key: str) -> None:
        """Finds the finished lines; cuts off a last one that was being written."""
        whole = 0
        for row, line in enumerate(self._file):  # bytes: text may hold more kinds of line ends
            if not line.endswith(b"\n"):
                if not row and not _line({"key": key}).startswith(line):
                    raise PromptsError(f"{self._path} is of something else; choose another output")
                break  # the line that was being written when the process ended
            try:
                self._take(row, json.loads(line), key)
            except PromptsError:
                raise
            except (ValueError, KeyError, TypeError):
                remedy = "line away and its prompt is answered again" if row else "file away"
                raise PromptsError(f"{self._path}:{row + 1}: damaged; take the {remedy}") from None
            whole += len(line)
        self._file.seek(whole)
        self._file.truncate()
        if not whole:
            self._write({"key": key})

    def _take(self, row: int, content: Any, key: str) -> None:
        """A line that was written: the first says of which request all are."""
        if row:
            self.lines[content["number"]] = content["line"]
        elif content != {"key": key}:
            raise PromptsError(
                f"{self._path} is of another source, model or settings; delete it, or choose "
                "another output"
            )

    def add(self, number: int, line: dict[str, Any]) -> None:
        """Adds a finished line; once this returns, a killed process has not lost it."""
        self._write({"number": number, "line": line})
        self.lines[number] = line

    def finish(self) -> list[dict[str, Any]]:
        """Writes the target in the order of the prompts, and removes what led to it."""
        ordered = [self.lines[number] for number in sorted(self.lines)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered)
        write_text(self._target, text, mode=PRIVATE)
        self._path.unlink()
        return ordered

    def close(self) -> None:
        """Lets go of the file, whatever has come of it."""
        self._file.close()

    def _write(self, content: Mapping[str, Any]) -> None:
        """One line, out of this process."""
        self._file.write(_line(content))
        self._file.flush()


def _line(content: Mapping[str, Any]) -> bytes:
    """A value as one line of JSON."""
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"
