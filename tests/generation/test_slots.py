"""Slots on their own: who goes where, what a new prompt finds there, other capacities."""

import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.generation.slots import Rules, admit, advance, empty_slots, read_prompts, resize
from tests.helpers import random_params, tiny_decoder

RULES = Rules(np.array([97], np.int32), np.int32(6), np.uint32(0), np.float32(0.0), np.float32(1.0))


@pytest.fixture(scope="module")
def model():
    decoder = tiny_decoder()
    return decoder, random_params(decoder, seed=1)


def put(model, slots, places, prompts):
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), 4), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    numbers = np.arange(len(prompts), dtype=np.int32)
    first, cache = read_prompts(*model, tokens, lengths, numbers, RULES)
    return admit(slots, np.asarray(places, np.int32), lengths, numbers, first, cache, RULES)


def test_places_that_are_no_slots_get_nothing_and_the_others_stay(model):
    slots = put(model, empty_slots(model[0], 3, 8, 6), [2, 3], [[5, 6, 7], [8]])
    assert slots.rows.is_done.tolist() == [True, True, False]
    assert slots.rows.positions.tolist()[2] == 4
    assert slots.cache.segments.tolist() == [[0] * 8, [0] * 8, [1] * 3 + [0] * 5]
    assert not np.asarray(slots.cache.keys[:, :2]).any()


def test_a_slot_forgets_who_was_there_before(model):
    fresh = put(model, empty_slots(model[0], 3, 16, 6), [1], [[9, 3]])
    used = put(model, empty_slots(model[0], 3, 16, 6), [0, 1], [[5, 6, 7, 8], [8, 2, 3, 4]])
    used = advance(*model, used, RULES, np.int32(9), np.int32(3))
    assert used.rows.is_done.all()
    used = put(model, used, [1], [[9, 3]])
    rows = [advance(*model, slots, RULES, np.int32(9), np.int32(3)).rows for slots in (fresh, used)]
    assert rows[0].output[1].tolist() == rows[1].output[1].tolist()
    assert rows[0].num_new[1] == rows[1].num_new[1] == 6


def test_rows_stop_when_enough_are_done(model):
    slots = put(model, empty_slots(model[0], 2, 16, 6), [0, 1], [[5, 6, 7], [8]])
    slots = advance(*model, slots, RULES, np.int32(2), np.int32(2))
    assert slots.rows.num_new.tolist() == [3, 3]
    assert not slots.rows.is_done.any()
    slots = advance(*model, slots, RULES, np.int32(50), np.int32(1))
    assert slots.rows.num_new.tolist() == [6, 6]
    after = advance(*model, slots, RULES, np.int32(50), np.int32(2))
    assert after.rows.positions.tolist() == [9, 7]


def test_another_capacity_keeps_what_is_there(model):
    slots = put(model, empty_slots(model[0], 2, 8, 6), [0, 1], [[5, 6, 7], [8]])
    wide = resize(slots, 11)
    back = resize(wide, 8)
    assert wide.cache.keys.shape == (3, 2, 2, 11, 6)
    assert not np.asarray(wide.cache.segments[:, 8:]).any()
    for kept, leaf in zip(back.cache, slots.cache, strict=True):
        np.testing.assert_array_equal(kept, leaf)
    assert jnp.array_equal(back.rows.output, slots.rows.output)
