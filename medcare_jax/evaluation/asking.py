"""The two ways to ask: let the model write, or weigh the options by their likelihood."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import logging
from transformers import PreTrainedTokenizerFast

from medcare_jax.data.chat import Message, encode_prompt, end_token_ids, to_messages
from medcare_jax.evaluation.grading import Grade, grade
from medcare_jax.evaluation.items import Item
from medcare_jax.evaluation.likelihood import OptionScore, option_scores
from medcare_jax.evaluation.scoring import Rules
from medcare_jax.evaluation.tasks import GENERATE, LIKELIHOOD, SUFFIXES, Protocol, TaskSpec
from medcare_jax.generation.sampler import Sampler
from medcare_jax.models.decoder import Decoder
from medcare_jax.shapes import Params

ANNOUNCEMENTS = {"en": "The answer is ", "zh": "答案为"}
"""What stands before a letter, by language."""

_ROOM = 16  # tokens kept free behind a written answer for the announcement of a forced letter


class Subject(NamedTuple):
    """What is scored.

    Attributes:
      decoder: the model.
      params: its parameters.
      tokenizer: its own.
      end_ids: tokens that end an answer by the base's generation settings; for the harness, whose
        own model heeds them.
    """

    decoder: Decoder
    params: Params
    tokenizer: PreTrainedTokenizerFast
    end_ids: tuple[int, ...] = ()


class Answer(NamedTuple):
    """What came of asking one item.

    Attributes:
      output: the answer, as the rules read it.
      grade: of that.
      is_unreadable: whether no rule could read what the model wrote by itself.
      details: by-products for samples.
    """

    output: str
    grade: Grade
    is_unreadable: bool
    details: dict[str, Any]


class Question(NamedTuple):
    """An item with its prompt as tokens."""

    item: Item
    tokens: list[int]


def messages_of(spec: TaskSpec, item: Item) -> list[Message]:
    """The prompt as messages; an exam's ends in the request for the answer's format."""
    messages = to_messages(item.turns)
    if spec.family == "exam" and not messages[-1]["content"].endswith(SUFFIXES[spec.language]):
        messages[-1]["content"] += SUFFIXES[spec.language]
    return messages


def question(subject: Subject, spec: TaskSpec, item: Item) -> Question:
    """The item with its prompt as tokens.

    Raises:
      ValueError: the prompt holds a control token; names the item.
    """
    try:
        tokens = encode_prompt(messages_of(spec, item), subject.tokenizer)
    except ValueError as error:
        raise ValueError(f"{spec.title}, item {item.id!r}: {error}") from None
    return Question(item, tokens.tolist())


def room(
    subject: Subject, spec: TaskSpec, item: Item, protocol: Protocol, max_new_tokens: int
) -> int:
    """The most tokens that a protocol puts behind an item's prompt."""
    if protocol == GENERATE:
        return max_new_tokens + _ROOM
    shared, tails = _continuations(subject.tokenizer, *_weighed(spec, item))
    return len(shared) + max(map(len, tails))


def ask(
    subject: Subject,
    spec: TaskSpec,
    questions: Sequence[Question],
    protocol: Protocol,
    *,
    rules: Rules,
    batch: int,
    max_new_tokens: int,
    on_done: Callable[[int], None] = lambda items: None,
) -> list[Answer]:
    """The answers to questions of one task.

    Args:
      subject: what is asked.
      spec: the task.
      questions: their prompts must leave `room` in the context.
      protocol: one of the task's.
      rules: see the package `scoring`.
      batch: prompts at once.
      max_new_tokens: longest written answer.
      on_done: called with the number of questions just answered.
    """
    if protocol == LIKELIHOOD:
        return _weigh(subject, spec, questions, batch, on_done)
    outputs = _write(subject, questions, batch, max_new_tokens, on_done)
    items = [each.item for each in questions]
    grades = [grade(spec, i, output, rules) for i, output in zip(items, outputs, strict=True)]
    if spec.family != "exam":
        return [
            Answer(output, mine, mine.parsed is None, {})
            for output, mine in zip(outputs, grades, strict=True)
        ]
    return _with_letters(subject, spec, questions, outputs, grades, rules, batch)


def _write(
    subject: Subject,
    questions: Sequence[Question],
    batch: int,
    max_new_tokens: int,
    on_done: Callable[[int], None],
) -> list[str]:
    """Greedy answers, up to the first control token."""
    ends = end_token_ids(subject.tokenizer)
    sampler = Sampler(subject.decoder, subject.params, end_ids=ends, pad_id=ends[0])
    rows = sampler.generate(
        [each.tokens for each in questions],
        max_new_tokens=max_new_tokens,
        batch=batch,
        on_done=on_done,
    )
    decode = subject.tokenizer.decode
    return [str(decode(row, clean_up_tokenization_spaces=False)) for row in rows]


def _with_letters(
    subject: Subject,
    spec: TaskSpec,
    questions: Sequence[Question],
    outputs: Sequence[str],
    grades: Sequence[Grade],
    rules: Rules,
    batch: int,
) -> list[Answer]:
    """Exam answers with the likeliest letter behind: behind all as in the reference, or, with
    `strict`, behind those alone that no rule could read.
    """  # noqa: D205
    forced = [i for i, mine in enumerate(grades) if rules == "reference" or mine.parsed is None]
    heads = [f"{outputs[i]}{_bridge(outputs[i])}{ANNOUNCEMENTS[spec.language]}" for i in forced]
    letters = [list(questions[i].item.options) for i in forced]
    rows = _score(subject, [questions[i] for i in forced], heads, letters, batch)
    chosen = {
        i: (heads[k], letters[k][_best([score.log_prob for score in rows[k]])])
        for k, i in enumerate(forced)
    }
    answers = []
    for i, (each, output, mine) in enumerate(zip(questions, outputs, grades, strict=True)):
        details: dict[str, Any] = {"read": mine.parsed, "forced": None}
        is_unreadable = mine.parsed is None
        if i in chosen:
            head, letter = chosen[i]
            output, details["forced"] = head + letter, letter
            mine = grade(spec, each.item, output, rules)
        answers.append(Answer(output, mine, is_unreadable, details))
    return answers


def _weigh(
    subject: Subject,
    spec: TaskSpec,
    questions: Sequence[Question],
    batch: int,
    on_done: Callable[[int], None],
) -> list[Answer]:
    """The likeliest option by its letter, by its text, and by its text per token."""
    heads, texts = zip(*(_weighed(spec, each.item) for each in questions), strict=True)
    rows = _score(subject, questions, heads, texts, batch, on_done)
    return [
        _weighed_answer(spec, each.item, row) for each, row in zip(questions, rows, strict=True)
    ]


def _weighed(spec: TaskSpec, item: Item) -> tuple[str, list[str]]:
    """What stands before the options, and the options: an exam's letters, then its texts."""
    if spec.family == "options":
        return "", list(item.options)
    return ANNOUNCEMENTS[spec.language], [*item.options, *item.options.values()]


def _weighed_answer(spec: TaskSpec, item: Item, row: Sequence[OptionScore]) -> Answer:
    """The answer of one item from the log-probabilities of its options."""
    names = list(item.options)
    texts = row[-len(names) :]
    gold = item.letters if spec.family == "exam" else item.gold
    by_text = names[_best([score.log_prob for score in texts])]
    by_mean = names[_best([score.mean for score in texts])]
    scores = {"accuracy_text": int(by_text == gold), "accuracy_text_mean": int(by_mean == gold)}
    details: dict[str, Any] = {
        "text_log_probs": [score.log_prob for score in texts],
        "text_tokens": [score.num_tokens for score in texts],
    }
    chosen = by_text
    if spec.family == "exam":
        log_probs = [score.log_prob for score in row[: len(names)]]
        chosen = names[_best(log_probs)]
        details["log_probs"] = log_probs
    else:
        del scores["accuracy_text"]
    return Answer(
        chosen, Grade(chosen, {"accuracy": int(chosen == gold), **scores}), False, details
    )


def _score(
    subject: Subject,
    questions: Sequence[Question],
    heads: Sequence[str],
    options: Sequence[Sequence[str]],
    batch: int,
    on_done: Callable[[int], None] = lambda items: None,
) -> list[list[OptionScore]]:
    """Log-probabilities of options behind prompt and head."""
    if not questions:
        return []
    cut = [
        _continuations(subject.tokenizer, head, texts)
        for head, texts in zip(heads, options, strict=True)
    ]
    context = subject.decoder.settings.max_position_embeddings
    prompts, num_cut = [], 0
    for each, (shared, tails) in zip(questions, cut, strict=True):
        # Broken characters of an answer take more tokens when they are read anew.
        excess = max(len(each.tokens) + len(shared) + max(map(len, tails)) - context, 0)
        prompts.append(each.tokens + shared[excess:])
        num_cut += excess > 0
    if num_cut:
        logging.warning(
            "%d of %d answers lose their beginning where a letter is forced behind them: read anew "
            "they are longer than the model's context of %d tokens",
            *(num_cut, len(questions), context),
        )
    return option_scores(
        subject.decoder,
        subject.params,
        prompts,
        [tails for _, tails in cut],
        batch=batch,
        on_done=on_done,
    )


def _continuations(
    tokenizer: PreTrainedTokenizerFast, head: str, texts: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """The tokens that all of `head + text` begin with, and what each goes on with.

    Head and text are tokenised as one: "is B" is not "is " and "B". Where a text is a beginning of
    another one, at least its last token stays its own.
    """
    rows: list[list[int]] = tokenizer([head + text for text in texts], add_special_tokens=False)[
        "input_ids"
    ]
    shortest = min(map(len, rows)) - 1
    shared = 0
    while shared < shortest and len({row[shared] for row in rows}) == 1:
        shared += 1
    if not head:
        shared = 0
    return rows[0][:shared], [row[shared:] for row in rows]


def _bridge(output: str) -> str:
    """What the reference puts between an answer and the announcement of a letter."""
    return " \n" if output.strip().endswith(".") else ". \n"


def _best(values: Sequence[float]) -> int:
    """The place of the first largest value."""
    return max(range(len(values)), key=values.__getitem__)
