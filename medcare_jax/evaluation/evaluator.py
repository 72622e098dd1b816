"""Scores of a model on tasks: options by likelihood, formats by greedy generation."""

import functools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from medcare_jax.data.chat import encode_prompt, to_messages
from medcare_jax.evaluation.answers import parse_diagnoses
from medcare_jax.evaluation.likelihood import option_scores
from medcare_jax.evaluation.metrics import estimate
from medcare_jax.evaluation.tasks import ChoiceItem, Task, WritingItem
from medcare_jax.generation.sampler import Sampler
from medcare_jax.models.decoder import Decoder
from medcare_jax.shapes import Params


class _Model(NamedTuple):
    """What is scored."""

    decoder: Decoder
    params: Params
    tokenizer: PreTrainedTokenizerFast


class _Scored(NamedTuple):
    """What came of one item: outcomes 0 or 1 by metric, and what the model did, for samples."""

    item: ChoiceItem | WritingItem
    outcomes: dict[str, int]
    details: dict[str, Any]


def evaluate(
    decoder: Decoder,
    params: Params,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Iterable[Task],
    *,
    batch: int,
    max_new_tokens: int,
    seed: int = 0,
    samples_path: str | Path | None = None,
    on_done: Callable[[str, int], None] = lambda task, items: None,
) -> dict[str, Any]:
    """The scores of one model on every task, as plain values that JSON can hold.

    A question is answered by the option whose text has the largest log-probability after the
    prompt; a request by greedy generation up to the first control token.

    Args:
      decoder: the model.
      params: its parameters.
      tokenizer: its fast tokenizer, with the chat template that it was trained on.
      tasks: what `load_tasks` returns.
      batch: prompts at once.
      max_new_tokens: longest answer to a request.
      seed: seed of the bootstrap.
      samples_path: a JSON Lines file to write prompts, answers and gold to; None, the default,
        writes no text anywhere.
      on_done: called with a task's name and the number of its items just finished.

    Returns:
      By task name: `kind`, `metric` (the headline), `items` scored, `left_out` (counts by
      reason), `seconds`, and `scores`: per metric `score` with its 95 % interval `low`, `high`,
      `types` (per type of item, score and count) and `outcomes`, 0 or 1 per item in order.

    Raises:
      ValueError: if every item of a task is longer than the model's context.
    """
    model = _Model(decoder, params, tokenizer)
    results: dict[str, Any] = {}
    samples: list[str] = []
    for task in tasks:
        start = time.perf_counter()
        choices = [item for item in task.items if isinstance(item, ChoiceItem)]
        writings = [item for item in task.items if isinstance(item, WritingItem)]
        done = functools.partial(on_done, task.name)
        scored = _score_choices(model, choices, batch, done) + _score_writings(
            model, writings, batch, max_new_tokens, done
        )
        results[task.name] = _summary(task, scored, time.perf_counter() - start, seed)
        samples += (_sample(task.name, entry) for entry in scored)
    if samples_path is not None:
        Path(samples_path).write_text("".join(samples), encoding="utf-8")
    return results


def end_token_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The ids that end an answer: every control token, since an answer is plain text.

    It is the rule by which training targets end, so a model that learnt to stop is seen to.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(sorted(special | set(tokenizer.all_special_ids)))


def _score_choices(
    model: _Model, items: list[ChoiceItem], batch: int, on_done: Callable[[int], None]
) -> list[_Scored]:
    """Whether the likeliest option of each question is the right one."""
    texts = [option for item in items for option in item.options]
    ids = iter(_option_ids(model.tokenizer, texts))
    options = [[next(ids) for _ in item.options] for item in items]
    prompts, kept = _prompts(model, items, [max(map(len, choices)) for choices in options])
    scores = option_scores(
        model.decoder,
        model.params,
        prompts,
        [options[i] for i in kept],
        batch=batch,
        on_done=on_done,
    )
    scored = []
    for i, row in zip(kept, scores, strict=True):
        log_probs = [score.log_prob for score in row]
        chosen = log_probs.index(max(log_probs))
        details = {
            "options": list(items[i].options),
            "log_probs": log_probs,
            "num_tokens": [score.num_tokens for score in row],
            "chosen": chosen,
        }
        scored.append(_Scored(items[i], {"accuracy": int(chosen == items[i].gold)}, details))
    return scored


def _score_writings(
    model: _Model,
    items: list[WritingItem],
    batch: int,
    max_new_tokens: int,
    on_done: Callable[[int], None],
) -> list[_Scored]:
    """Whether what the model writes has the format asked for, and says exactly the gold."""
    if not items:
        return []
    prompts, kept = _prompts(model, items, [max_new_tokens] * len(items))
    ends = end_token_ids(model.tokenizer)
    sampler = Sampler(model.decoder, model.params, end_ids=ends, pad_id=ends[0])
    rows = sampler.generate(prompts, max_new_tokens=max_new_tokens, batch=batch, on_done=on_done)
    scored = []
    for i, row in zip(kept, rows, strict=True):
        item = items[i]
        output = str(model.tokenizer.decode(row, clean_up_tokenization_spaces=False))
        parsed = parse_diagnoses(output, item.form)
        gold = parse_diagnoses(item.gold, item.form)
        outcomes = {"exact_match": int(parsed == gold), "valid_format": int(parsed is not None)}
        scored.append(_Scored(item, outcomes, {"output": output}))
    return scored


def _option_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """The tokens of each option as an answer has them: right behind the prompt."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _prompts(
    model: _Model, items: Sequence[ChoiceItem | WritingItem], num_more: Sequence[int]
) -> tuple[list[list[int]], list[int]]:
    """Tokens of the prompts that fit the context with what follows, and which items these are."""
    context = model.decoder.settings.max_position_embeddings
    encoded = [encode_prompt(to_messages(item.turns), model.tokenizer).tolist() for item in items]
    kept = [i for i, ids in enumerate(encoded) if len(ids) + num_more[i] <= context]
    return [encoded[i] for i in kept], kept


def _summary(task: Task, scored: list[_Scored], seconds: float, seed: int) -> dict[str, Any]:
    """The entry of a task in the results."""
    num_too_long = len(task.items) - len(scored)
    if not scored:
        raise ValueError(
            f"task {task.name!r}: all {num_too_long} prompts are longer than the model's context"
        )
    return {
        "kind": task.spec.kind,
        "metric": task.spec.metric,
        "items": len(scored),
        "left_out": {"several right answers": task.num_multiple, "too long": num_too_long},
        "seconds": round(seconds, 3),
        "scores": {
            metric: _metric_summary(
                [entry.item.type for entry in scored],
                [entry.outcomes[metric] for entry in scored],
                seed,
            )
            for metric in scored[0].outcomes
        },
    }


def _metric_summary(types: list[str], outcomes: list[int], seed: int) -> dict[str, Any]:
    """One metric of a task: over all items and per type."""
    by_type: dict[str, list[int]] = {}
    for name, outcome in zip(types, outcomes, strict=True):
        by_type.setdefault(name, []).append(outcome)
    return {
        **estimate(outcomes, seed=seed)._asdict(),
        "types": {
            name: {"score": sum(mine) / len(mine), "items": len(mine)}
            for name, mine in sorted(by_type.items())
        },
        "outcomes": outcomes,
    }


def _sample(task: str, scored: _Scored) -> str:
    """One item as a line of samples.jsonl."""
    item = scored.item
    head = {"task": task, "id": item.id, "prompt": to_messages(item.turns), "gold": item.gold}
    line = {**head, **scored.details, "outcomes": scored.outcomes}
    return json.dumps(line, ensure_ascii=False) + "\n"
