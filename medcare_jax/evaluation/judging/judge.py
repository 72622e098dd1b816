"""Marks for many answers: asked in parallel, kept on disk, counted, within a limit."""

import concurrent.futures
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcare_jax.evaluation.judging.endpoint import Endpoint, EndpointError, Reply
from medcare_jax.evaluation.judging.rubric import MarksError, judge_messages, parse_marks

_UNREACHABLE_IN_A_ROW = 3


@dataclass(frozen=True)
class Answer:
    """What is to be marked: a dialogue, the answer to it, one good answer or an empty text."""

    prompt: Sequence[dict[str, str]]
    text: str
    reference: str = ""


@dataclass(frozen=True)
class Budget:
    """What may be spent.

    Attributes:
      prompt_price: Money per million prompt tokens; 0 if it is unknown or nothing.
      completion_price: Money per million tokens of replies.
      most_money: No request begins once this is spent; 0 for no limit.
      most_tokens: The same for tokens of prompts and replies together.
    """

    prompt_price: float = 0.0
    completion_price: float = 0.0
    most_money: float = 0.0
    most_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuses a limit that could never be reached."""
        if min(self.prompt_price, self.completion_price, self.most_money, self.most_tokens) < 0:
            raise ValueError("expected prices and limits of at least 0")
        if self.most_money and not (self.prompt_price or self.completion_price):
            raise ValueError("a limit on money needs the prices per million tokens of the judge")


@dataclass
class Judged:
    """What came of it.

    Attributes:
      marks: By answer, in order; None where there is none.
      failures: Reason to count of the answers without marks.
      requests: Replies that were paid for, garbage among them.
      cached: Replies that were on disk already.
      prompt_tokens, completion_tokens: Of the requests, as the endpoint counted them.
      money: What they cost at the prices of the budget.
    """

    marks: list[dict[str, int] | None]
    failures: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0


def judge(
    answers: Sequence[Answer],
    endpoint: Endpoint,
    *,
    cache: Path,
    budget: Budget | None = None,
    workers: int = 4,
    on_done: Callable[[int], None] = lambda answers: None,
) -> Judged:
    """Marks every answer that can be marked; what cannot is counted by reason and left without.

    A reply with marks is written to `cache` before it counts, so that a stopped run pays for
    nothing twice. Once the endpoint refuses the key or cannot be reached three times in a row,
    the rest is not tried.

    Args:
      answers: What is to be marked.
      endpoint: Who marks. Texts go there and nowhere else.
      cache: A folder for replies, for this user's eyes only.
      budget: Prices and limits; up to `workers` requests under way when a limit is met still end.
      workers: Requests at once.
      on_done: Called with 1 after each answer.
    """
    work = _Work(endpoint, cache, budget or Budget())
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        for place, marks in enumerate(pool.map(work.mark, answers)):
            assert place == len(work.done.marks)
            work.done.marks.append(marks)
            on_done(1)
    finally:
        pool.shutdown(cancel_futures=True)
    return work.done


class _Work:
    """What the threads share."""

    def __init__(self, endpoint: Endpoint, cache: Path, budget: Budget) -> None:
        self.endpoint, self.cache, self.budget = endpoint, cache, budget
        self.done = Judged([])
        self._lock = threading.Lock()
        self._stopped = ""  # why nothing more is asked
        self._unreachable = 0

    def mark(self, answer: Answer) -> dict[str, int] | None:
        """The marks of one answer, from disk or from the endpoint."""
        messages = judge_messages(answer.prompt, answer.text, answer.reference)
        path = self.cache / f"{self._digest(messages)}.json"
        try:
            return self._known(path) or self._ask(messages, path)
        except (MarksError, EndpointError) as error:
            with self._lock:
                self.done.failures[error.reason] += 1
            return None

    def _digest(self, messages: Sequence[dict[str, str]]) -> str:
        """What a reply depends on."""
        asked = [self.endpoint.url, self.endpoint.model, messages]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _known(self, path: Path) -> dict[str, int] | None:
        """Marks of an earlier run; a damaged file counts as none."""
        try:
            marks = parse_marks(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        with self._lock:
            self.done.cached += 1
        return marks

    def _ask(self, messages: Sequence[dict[str, str]], path: Path) -> dict[str, int]:
        """Marks from the endpoint, kept."""
        if self._stopped:
            raise EndpointError(self._stopped)
        try:
            reply = self.endpoint.ask(messages)
        except EndpointError as error:
            self._count_failure(error)
            raise
        self._count_reply(reply)
        marks = parse_marks(reply.text)
        _write_private(path, json.dumps(marks))
        return marks

    def _count_failure(self, error: EndpointError) -> None:
        """Stops once there is no hope."""
        with self._lock:
            self._unreachable += 1
            if error.is_final:
                self._stopped = f"not asked after {error.reason}"
            elif self._unreachable >= _UNREACHABLE_IN_A_ROW:
                self._stopped = "not asked, the endpoint is down"

    def _count_reply(self, reply: Reply) -> None:
        """Adds up what was spent, and stops at the limit."""
        budget, done = self.budget, self.done
        with self._lock:
            self._unreachable = 0
            done.requests += 1
            done.prompt_tokens += reply.prompt_tokens
            done.completion_tokens += reply.completion_tokens
            done.money = (
                done.prompt_tokens * budget.prompt_price
                + done.completion_tokens * budget.completion_price
            ) / 1e6
            tokens = done.prompt_tokens + done.completion_tokens
            is_spent = 0 < budget.most_money <= done.money or 0 < budget.most_tokens <= tokens
            if is_spent:
                self._stopped = "not asked, the limit is spent"


def _write_private(path: Path, text: str) -> None:
    """A file for its owner alone, whole or absent."""
    draft = path.with_suffix(f".{threading.get_ident()}.part")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


def describe_cost(done: Judged, budget: Budget) -> str:
    """What was spent, as one line.

    Examples:
      >>> describe_cost(Judged([], requests=3, prompt_tokens=900, completion_tokens=60), Budget())
      '3 requests, 0 from the cache, 900 + 60 tokens'
    """
    line = (
        f"{done.requests:,} requests, {done.cached:,} from the cache, {done.prompt_tokens:,} + "
        f"{done.completion_tokens:,} tokens"
    )
    has_price = budget.prompt_price or budget.completion_price
    return f"{line}, {done.money:.4f} in money" if has_price else line


def as_record(done: Judged) -> dict[str, Any]:
    """Counts and cost as plain values."""
    return {
        "marked": sum(marks is not None for marks in done.marks),
        "failures": dict(sorted(done.failures.items())),
        "requests": done.requests,
        "cached": done.cached,
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "money": done.money,
    }
