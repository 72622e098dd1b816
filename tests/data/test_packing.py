import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcare_jax.data.chat import Example
from medcare_jax.data.packing import Batch, pack_row, plan_rows, stack_rows


def example(length: int, seed: int = 0) -> Example:
    random = np.random.default_rng([length, seed])
    tokens = random.integers(1, 99, length, dtype=np.int32)
    return Example(tokens, random.random(length) < 0.6)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), max_size=80), st.integers(20, 31), st.integers(1, 30))
def test_every_example_is_in_one_row_that_holds_it(lengths, row_length, window):
    rows = plan_rows(lengths, row_length, window=window)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= row_length for row in rows)
    assert rows == plan_rows(lengths, row_length, window=window)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_two_rows_of_one_window_never_fit_into_one(lengths):
    rows = plan_rows(lengths, 20)
    filled = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(filled) < 2 or filled[0] + filled[1] > 20


def test_rows_follow_the_order_window_by_window():
    rows = plan_rows([5] * 400, 20, window=40)
    assert all(max(row) - min(row) < 40 + 4 for row in rows)


@pytest.mark.parametrize(("row_length", "goal"), [(3072, 0.99), (512, 0.98)])
def test_rows_of_real_lengths_are_nearly_full(row_length, goal):
    """Lengths like those of the public kit: log-normal, median 190 tokens, 1 % over 660."""
    random = np.random.default_rng(5)
    lengths = np.exp(random.normal(np.log(190), 0.55, 5000)).astype(int)
    lengths = lengths[lengths <= row_length].tolist()
    rows = plan_rows(lengths, row_length)
    assert sum(lengths) / (len(rows) * row_length) > goal
    one_by_one = sum(lengths) / (len(lengths) * row_length)
    assert one_by_one < 0.5  # what packing is for


@pytest.mark.parametrize("length", [0, 11])
def test_examples_that_cannot_be_packed_are_refused(length):
    with pytest.raises(ValueError, match=f"of 1 to 10 tokens, got one of {length} at place 1"):
        plan_rows([3, length, 4], 10)


def test_a_row_in_numbers():
    first = Example(np.array([7, 8, 9], np.int32), np.array([True, False, True]))
    second = Example(np.array([5, 6], np.int32), np.array([True, True]))
    row = pack_row([first, second], 7)
    assert row.tokens.tolist() == [7, 8, 9, 5, 6, 0, 0]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 0, 0]
    assert row.segments.tolist() == [1, 1, 1, 2, 2, 0, 0]
    # A segment's first token is predicted from nothing: it is no term of the loss.
    assert row.is_target.tolist() == [False, False, True, False, True, False, False]
    assert [field.dtype for field in row] == [np.int32, np.int32, np.int32, np.bool_]
    assert first.is_target[0]  # the example is left as it was


def test_a_row_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="at most 6 tokens for a row, got 7"):
        pack_row([example(3), example(4)], 6)


def loss_terms(batch: Batch) -> list[tuple[int, ...]]:
    """What a causal model that keeps segments apart would be asked: all it sees, then the label."""
    terms = []
    for row in zip(*batch, strict=True):
        tokens, positions, segments, is_target = row
        for label in range(1, len(tokens)):
            if is_target[label] and segments[label] == segments[label - 1]:
                seen = np.flatnonzero(segments[:label] == segments[label])
                assert positions[seen].tolist() == list(range(len(seen)))
                assert positions[label] == len(seen)
                terms.append((*tokens[seen].tolist(), int(tokens[label])))
    return terms


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 5))
def test_packing_leaves_every_loss_term_as_it_is_alone(lengths, free):
    examples = [example(length, place) for place, length in enumerate(lengths)]
    packed = stack_rows(
        [pack_row(examples, sum(lengths) + free), pack_row([], sum(lengths) + free)]
    )
    alone = [loss_terms(stack_rows([pack_row([one], 9)])) for one in examples]
    assert loss_terms(packed) == [term for terms in alone for term in terms]
    assert packed.is_target.sum() == len(loss_terms(packed))
    assert packed.tokens.shape == (2, sum(lengths) + free)
    assert not packed.segments[1].any()
