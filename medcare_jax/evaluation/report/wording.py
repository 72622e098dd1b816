"""Numbers as a reader sees them, the same in text, tables and charts."""

from medcare_jax.evaluation.judging.rubric import CRITERIA, HIGHEST, JUDGE_METRIC, LOWEST
from medcare_jax.evaluation.metrics import Estimate

NONE = "–"
MARKS = (JUDGE_METRIC, *CRITERIA)
"""Metrics in a judge's marks, where all others are shares."""


def percent(score: float) -> str:
    """A share as a reader sees it.

    Examples:
      >>> percent(0.6825)
      '68.2%'
    """
    return f"{100 * score:.1f}%"


def points(delta: float) -> str:
    """A difference of shares in percentage points, with its sign.

    Examples:
      >>> points(0.25), points(-0.031), points(0.0)
      ('+25.0', '−3.1', '±0.0')
    """
    return _signed(100 * delta, 1)


def interval(estimate: Estimate) -> str:
    """A 95 % interval as a reader sees it, in per cent.

    Examples:
      >>> interval(Estimate(0.5, 0.421, 0.5833))
      '42.1 to 58.3'
    """
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"


def p_value(p: float | None) -> str:
    """A p-value as a reader sees it; None where no pairs of outcomes could be compared.

    Examples:
      >>> p_value(0.0321), p_value(1e-9), p_value(None)
      ('p = 0.032', 'p < 0.001', 'not paired')
    """
    if p is None:
        return "not paired"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def metric_name(metric: str) -> str:
    """A metric's name in words.

    Examples:
      >>> metric_name("exact_match")
      'exact match'
    """
    return metric.replace("_", " ")


def score_text(metric: str, score: float) -> str:
    """A score in the unit of its metric.

    Examples:
      >>> score_text("accuracy", 0.5), score_text("judge", 3.25)
      ('50.0%', '3.25')
    """
    return f"{score:.2f}" if metric in MARKS else percent(score)


def interval_text(metric: str, estimate: Estimate) -> str:
    """A 95 % interval in the unit of its metric.

    Examples:
      >>> interval_text("judge", Estimate(3.25, 3.0, 3.5))
      '3.00 to 3.50'
    """
    if metric in MARKS:
        return f"{estimate.low:.2f} to {estimate.high:.2f}"
    return interval(estimate)


def difference_text(metric: str, delta: float) -> str:
    """A difference of scores in the unit of its metric, with its sign.

    Examples:
      >>> difference_text("accuracy", -0.031), difference_text("fluency", 0.5)
      ('−3.1', '+0.50')
    """
    return _signed(delta, 2) if metric in MARKS else points(delta)


def share_of_scale(metric: str, score: float) -> float:
    """Where a score stands between the worst, 0, and the best, 1.

    Examples:
      >>> share_of_scale("rouge_l", 0.3), share_of_scale("judge", 3.0)
      (0.3, 0.5)
    """
    return (score - LOWEST) / (HIGHEST - LOWEST) if metric in MARKS else score


def _signed(value: float, digits: int) -> str:
    """A number with its sign; one that rounds to nothing has both."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return f"±{text}"
    return f"{'+' if value > 0 else '−'}{text}"
