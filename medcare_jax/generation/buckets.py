"""Few compiled shapes for rows of many lengths: buckets, batches of similar rows, padding."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int


def bucket_length(length: int, *, minimum: int = 16) -> int:
    """The smallest compiled length that holds `length` tokens.

    Lengths are `minimum` times 1, 1.5, 2, 3, 4, 6, 8, ...: at most a third of a row is padding,
    while any data set meets only a handful of shapes, each compiled once.

    Args:
      length: tokens to hold, at least 0.
      minimum: the smallest bucket, an even number.

    Examples:
      >>> [bucket_length(n) for n in (1, 16, 17, 25, 33, 100)]
      [16, 16, 24, 32, 48, 128]
    """
    bucket = minimum
    while bucket < length:
        if bucket + bucket // 2 >= length:
            return bucket + bucket // 2
        bucket *= 2
    return bucket


def length_batches(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Indices of `batch` rows of similar length each, the shortest first.

    Only the last batch may have fewer: an unfilled batch costs as much as a full one, more than
    a few rows in a bucket too wide for them.

    Examples:
      >>> list(length_batches([3, 40, 5, 7], 2))
      [[0, 2], [3, 1]]
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    return (by_length[i : i + batch] for i in range(0, len(lengths), batch))


def pad_right(
    rows: Sequence[Sequence[int]], batch: int, pad_id: int, *, minimum: int = 16
) -> tuple[Int[np.ndarray, "b t"], Int[np.ndarray, " b"]]:
    """Rows of ids as one int32 array of a bucket's width, and each row's length.

    Rows that are missing to `batch` are one pad token long, since no row may be empty.

    Args:
      rows: token ids, at most `batch` rows.
      batch: rows b of the result.
      pad_id: token that fills what is not there.
      minimum: the smallest width.

    Examples:
      >>> tokens, lengths = pad_right([[5, 6, 7]], 2, 0, minimum=2)
      >>> tokens.tolist(), lengths.tolist()
      ([[5, 6, 7], [0, 0, 0]], [3, 1])
    """
    width = bucket_length(max(map(len, rows)), minimum=minimum)
    tokens = np.full((batch, width), pad_id, np.int32)
    lengths = np.ones(batch, np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        lengths[index] = len(row)
    return tokens, lengths
