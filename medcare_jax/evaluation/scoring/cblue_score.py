"""The 16 CBLUE tasks: structures to scores, task by task, and their mean."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from medcare_jax.evaluation.scoring import Rules
from medcare_jax.evaluation.scoring.f1 import Counts, count, label_f1, micro_f1
from medcare_jax.evaluation.scoring.rouge import Rouge, chinese_tokens, mean_rouge, rouge

Structured = Mapping[str, Sequence[Mapping[str, Any]]]
"""By task, the items in order: `{"sample_id": ..., "answer": structure}`."""


class CblueTask(NamedTuple):
    """How a task is scored.

    Attributes:
      family: findings (F1 of sets), label (macro or weighted F1), or text (ROUGE-L).
      title: how the reference calls its headline; its "Micro-F1" of labels is a weighted F1.
      default: the label that `reference` puts in place of an empty answer.
    """

    family: Literal["findings", "macro", "weighted", "text"]
    title: str
    default: str = ""


TASKS: dict[str, CblueTask] = {
    "CMeEE-V2": CblueTask("findings", "Micro-F1"),
    "CMeIE": CblueTask("findings", "Micro-F1"),
    "CHIP-CDN": CblueTask("findings", "Micro-F1"),
    "CHIP-CDEE": CblueTask("findings", "Micro-F1"),
    "IMCS-V2-NER": CblueTask("findings", "Micro-F1"),
    "CHIP-MDCFNPC": CblueTask("findings", "Micro-F1"),
    "IMCS-V2-SR": CblueTask("findings", "Micro-F1"),
    "IMCS-V2-DAC": CblueTask("macro", "Macro-F1", "非上述类型"),
    "IMCS-V2-MRG": CblueTask("text", "RougeL"),
    "CHIP-CTC": CblueTask("macro", "Macro-F1", "非上述类型"),
    "CHIP-STS": CblueTask("weighted", "Micro-F1", "是的"),
    "KUAKE-IR": CblueTask("weighted", "Micro-F1", "相关"),
    "KUAKE-QIC": CblueTask("macro", "Macro-F1", "非上述类型"),
    "KUAKE-QQR": CblueTask("weighted", "Micro-F1", "完全一致"),
    "KUAKE-QTR": CblueTask("weighted", "Micro-F1", "完全不匹配或者没有参考价值"),
    "MedDG": CblueTask("text", "RougeL"),
}
HEADLINES = {"findings": "f1", "macro": "macro-f1", "weighted": "f1", "text": "rougeL"}
"""The metric of a family that goes into the mean."""


class PredictionError(ValueError):
    """Predictions that are not of the gold's items."""


def score_cblue(gold: Structured, predicted: Structured, rules: Rules) -> dict[str, dict]:
    """The metrics of each of the 16 tasks.

    Args:
      gold: the right structures.
      predicted: what `cblue_parse.parse` read, item by item in the gold's order.
      rules: see the package.

    Returns:
      By task in the benchmark's order: `precision`, `recall`, `f1`; or the same with `macro-`
      before; or `rouge1`, `rouge2`, `rougeL`.

    Raises:
      PredictionError: a task is missing, or predictions are of other items or in another order.
    """
    scores = {}
    for task in TASKS:
        for name, side in (("gold", gold), ("predictions", predicted)):
            if not side.get(task):
                raise PredictionError(f"{task}: expected {name}, got none")
        check_order(
            task,
            [str(item.get("sample_id")) for item in gold[task]],
            [str(item.get("sample_id")) for item in predicted[task]],
        )
        pairs = zip(gold[task], predicted[task], strict=True)
        scores[task] = score_task(task, [(g["answer"], p["answer"]) for g, p in pairs], rules)
    return scores


def check_order(task: str, gold: Sequence[str], predicted: Sequence[str]) -> None:
    """Raises unless predictions are of the gold's items, in its order.

    Raises:
      PredictionError: another number, or another item; names the first such.
    """
    if len(gold) != len(predicted):
        raise PredictionError(
            f"{task}: expected {len(gold)} predictions, one per item, got {len(predicted)}"
        )
    for number, (mine, theirs) in enumerate(zip(gold, predicted, strict=True), 1):
        if mine != theirs:
            raise PredictionError(
                f"{task}: expected prediction {number} to be of item {mine!r}, got {theirs!r}; "
                "predictions must have the order of the items"
            )


def score_task(
    task: str, pairs: Sequence[tuple[Any, Any]], rules: Rules, *, labels: Sequence[str] = ()
) -> dict[str, float]:
    """The metrics of one task.

    Args:
      task: a key of `TASKS`.
      pairs: gold and predicted structure of each item.
      rules: with `strict`, a macro F1 runs over the gold's labels, and F1 of the labels of other
        tasks is the true micro-F1, which is accuracy.
      labels: with `strict`, what a macro F1 runs over; by default the labels of this gold.

    Examples:
      >>> score_task("KUAKE-IR", [("相关", "相关"), ("不相关", "")], "strict")["f1"]
      0.5
    """
    family = TASKS[task].family
    if family == "findings":
        counted = micro_f1([count_findings(gold, said) for gold, said in pairs])
        return {"precision": counted.precision, "recall": counted.recall, "f1": counted.f1}
    if family == "text":
        scored = mean_rouge(row for gold, said in pairs for row in rouge_rows(gold, said, rules))
        return {"rouge1": scored.rouge_1, "rouge2": scored.rouge_2, "rougeL": scored.rouge_l}
    gold = [answer for answer, _ in pairs]
    said = [said_label(task, answer, rules) for _, answer in pairs]
    if rules == "strict" and family == "weighted":
        accuracy = sum(g == s for g, s in zip(gold, said, strict=True)) / len(gold)
        return {"precision": accuracy, "recall": accuracy, "f1": accuracy}
    averaged = label_f1(
        said,
        gold,
        "macro" if family == "macro" else "weighted",
        labels=(labels or sorted(set(gold))) if rules == "strict" else None,
    )
    prefix = "macro-" if family == "macro" else ""
    return {f"{prefix}{name}": value for name, value in averaged._asdict().items()}


def headline_scores(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The headline of each task under the reference's name, and under `score` their mean.

    Examples:
      >>> zeros = {task: {HEADLINES[spec.family]: 0.0} for task, spec in TASKS.items()}
      >>> headline_scores(zeros | {"MedDG": {"rougeL": 1.6}})["score"]
      0.1
    """
    heads = {task: scores[task][HEADLINES[spec.family]] for task, spec in TASKS.items()}
    named = {f"{task}-{TASKS[task].title}": score for task, score in heads.items()}
    return {**named, "score": sum(heads.values()) / len(heads)}


def count_findings(gold: Sequence[Mapping], said: Sequence[Mapping]) -> Counts:
    """Right, superfluous and missed findings of one item; a finding is its values, as a whole."""
    return count({_values(one) for one in said}, {_values(one) for one in gold})


def rouge_rows(gold: Any, said: Any, rules: Rules) -> list[Rouge]:
    """ROUGE of an answer: one row of a text, one per section of the gold's report."""
    if isinstance(gold, str):
        pairs = [(said, gold)]
    else:
        pairs = [(said.get(key, ""), text) for key, text in gold.items()]
    return [rouge(chinese_tokens(p), chinese_tokens(g), rules) for p, g in pairs]


def said_label(task: str, label: str, rules: Rules) -> str:
    """A predicted label; with `reference`, an empty one is the task's default."""
    return label or TASKS[task].default if rules == "reference" else label


def _values(finding: Mapping[str, Any]) -> tuple[str, ...]:
    """What two equal findings share: the values in the order of their keys."""
    return tuple(json.dumps(finding[key], ensure_ascii=False) for key in sorted(finding))
