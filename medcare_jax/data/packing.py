"""Several dialogues in one row: which go together, and the arrays of a row.

Most dialogues are far shorter than a row. Packed rows waste almost nothing, and segment numbers
keep the dialogues of a row from seeing each other.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from medcare_jax.data.chat import Example

__all__ = ["Batch", "pack_row", "plan_rows", "stack_rows"]


class Batch(NamedTuple):
    """Packed rows: b rows of t tokens, or one row when the leading axis is missing.

    Attributes:
      tokens: Ids, int32 ``[b, t]``; 0 where there is padding.
      positions: Place inside the segment, from 0, int32 ``[b, t]``; 0 where there is padding.
      segments: 1, 2, ... for the dialogues of a row, 0 for padding, int32 ``[b, t]``.
      is_target: Whether a token is to be predicted from those before it in its segment, bool
        ``[b, t]``. It marks the predicted token itself (Hugging Face's labels, not shifted) and is
        never set on a segment's first token, so the number of marks is the number of loss terms.
    """

    tokens: Int32[np.ndarray, "*b t"]
    positions: Int32[np.ndarray, "*b t"]
    segments: Int32[np.ndarray, "*b t"]
    is_target: Bool[np.ndarray, "*b t"]


def plan_rows(
    lengths: Sequence[int], row_length: int, *, window: int = 1024
) -> list[tuple[int, ...]]:
    """Returns which examples share a row: every example once, no row over its length.

    Best fit, longest first, inside windows of the given order: each example joins the fullest row
    that still holds it. Windows keep the order's randomness (all of a data set at once would always
    put the same lengths together); what stands in a window's emptiest row waits for the next one.

    Args:
      lengths: Tokens in each example.
      row_length: Tokens in a row.
      window: Examples looked at together.

    Returns:
      For each row the places of its examples in `lengths`.

    Raises:
      ValueError: An example is empty or longer than a row.

    Examples:
      >>> plan_rows([4, 7, 3, 6, 2], 10)
      [(1, 2), (3, 0), (4,)]
    """
    bad = [index for index, length in enumerate(lengths) if not 0 < length <= row_length]
    if bad:
        raise ValueError(
            f"expected examples of 1 to {row_length} tokens, got one of {lengths[bad[0]]} at "
            f"place {bad[0]} and {len(bad) - 1} others; drop or cut them before packing"
        )
    rows: list[tuple[int, ...]] = []
    waiting: list[int] = []
    for start in range(0, len(lengths), window):
        waiting += range(start, min(start + window, len(lengths)))
        *full, emptiest = _best_fit(waiting, lengths, row_length)
        rows += map(tuple, full)
        waiting = emptiest
    return [*rows, tuple(waiting)] if waiting else rows


def pack_row(examples: Sequence[Example], row_length: int) -> Batch:
    """Returns one row, arrays ``[t]``, with the examples behind each other.

    Args:
      examples: Together at most `row_length` tokens; none gives a row of padding.
      row_length: t.

    Raises:
      ValueError: They do not fit.
    """
    total = sum(len(example.tokens) for example in examples)
    if total > row_length:
        raise ValueError(f"expected at most {row_length} tokens for a row, got {total}")
    row = Batch(*(np.zeros(row_length, kind) for kind in (np.int32, np.int32, np.int32, np.bool_)))
    start = 0
    for segment, example in enumerate(examples, 1):
        span = slice(start, start + len(example.tokens))
        row.tokens[span] = example.tokens
        row.positions[span] = np.arange(len(example.tokens))
        row.segments[span] = segment
        row.is_target[span] = example.is_target
        row.is_target[start : start + 1] = False
        start = span.stop
    return row


def stack_rows(rows: Sequence[Batch]) -> Batch:
    """Returns rows ``[t]`` as one batch ``[b, t]``."""
    return Batch(*(np.stack(field) for field in zip(*rows, strict=True)))


def _best_fit(waiting: list[int], lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Rows for some examples; the emptiest comes last."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # tokens left and number of each row, fullest first
    for index in sorted(waiting, key=lambda index: -lengths[index]):
        place = bisect_left(free, (lengths[index], 0))
        if place == len(free):
            left, number = row_length, len(rows)
            rows.append([])
        else:
            left, number = free.pop(place)
        rows[number].append(index)
        insort(free, (left - lengths[index], number))
    return [rows[number] for _, number in free]
