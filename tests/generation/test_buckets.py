"""Buckets waste little, are few, and lose no row."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medcare_jax.generation.buckets import bucket_length, length_batches, pad_right


@given(st.integers(1, 100_000), st.sampled_from([2, 8, 16]))
def test_a_bucket_holds_its_length_and_wastes_a_third_at_most(length, minimum):
    bucket = bucket_length(length, minimum=minimum)
    assert bucket >= length
    assert bucket == minimum or 3 * (bucket - length) < bucket


def test_buckets_are_few():
    assert len({bucket_length(length) for length in range(1, 4097)}) == 17


@given(st.lists(st.integers(1, 200), max_size=40), st.integers(1, 5))
def test_batches_are_full_and_ordered_by_length(lengths, batch):
    batches = list(length_batches(lengths, batch))
    assert [len(rows) for rows in batches[:-1]] == [batch] * (len(batches) - 1)
    assert sorted(i for rows in batches for i in rows) == list(range(len(lengths)))
    ordered = [lengths[i] for rows in batches for i in rows]
    assert ordered == sorted(lengths)


def test_padding_is_on_the_right_and_missing_rows_have_one_token():
    tokens, lengths = pad_right([[5, 6, 7], [8]], 4, 9, minimum=2)
    assert tokens.dtype == lengths.dtype == np.int32
    assert tokens.tolist() == [[5, 6, 7], [8, 9, 9], [9, 9, 9], [9, 9, 9]]
    assert lengths.tolist() == [3, 1, 1, 1]
