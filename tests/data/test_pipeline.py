import dataclasses
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcare_jax.data.packing import Batch
from medcare_jax.data.pipeline import TrainingBatches, make_batches
from medcare_jax.data.records import RecordError

SETTINGS = {
    "row_length": 256,
    "rows": 6,
    "epochs": 2,
    "targets": "assistant",
    "over_long": "drop",
    "on_bad_record": "stop",
    "seed": 3,
}


@pytest.fixture
def files(write_list, make_item):
    """Two files with 40 and 31 dialogues of 97 to 136 tokens."""

    def some(first: int, count: int) -> list:
        numbers = range(first, first + count)
        return [make_item(n, f"question {n} " + "q" * (n % 30), f"answer {n}") for n in numbers]

    return [write_list(some(0, 40), "a.json"), write_list(some(100, 31), "b.json")]


@pytest.fixture
def make(byte_tokenizer, files):
    def make(**changes: object) -> TrainingBatches:
        return make_batches(byte_tokenizer, **{"files": files, **SETTINGS, **changes})

    return make


def equal(one: Batch, other: Batch) -> bool:
    return all(map(np.array_equal, one, other))


def ids(batches: TrainingBatches) -> list[str]:
    """The id of every dialogue in the order of the stream."""
    return [name for i in range(batches.num_batches) for name, _ in batches.record_ids(i)]


def test_every_example_is_seen_once_an_epoch(make, byte_tokenizer):
    batches = make()
    assert set(Counter(ids(batches)).values()) == {2}
    assert len(set(ids(batches))) == 71
    found = Counter()
    for index in range(batches.num_batches):
        batch = batches.batch(index)
        assert batch.tokens.shape == (6, 256)
        names = iter(batches.record_ids(index))
        for row in range(6):
            for segment in range(1, batch.segments[row].max() + 1):
                tokens = batch.tokens[row][batch.segments[row] == segment]
                text = byte_tokenizer.decode(tokens)
                number = next(names)[0].removeprefix("item-")
                assert f"question {number} " in text
                assert f"assistant\nanswer {number}<|im_end|>\n" in text
                found[number] += 1
        assert next(names, None) is None
    assert set(found.values()) == {2}


@pytest.mark.parametrize("targets", ["assistant", "reference"])
def test_the_report_counts_the_stream(make, targets):
    batches = make(epochs=1, targets=targets)
    report = batches.report
    everything = [batches.batch(index) for index in range(batches.num_batches)]
    tokens = sum(int((batch.segments > 0).sum()) for batch in everything)
    assert tokens == sum(file.tokens for file in report.files)
    assert sum(int(batch.is_target.sum()) for batch in everything) == sum(
        file.target_tokens for file in report.files
    )
    used = sum(int((batch.segments > 0).any(axis=1).sum()) for batch in everything)
    assert used == report.num_rows
    assert report.real_token_share == pytest.approx(tokens / (used * 256))
    assert report.num_batches == -(-used // 6) == batches.num_batches
    assert [file.kept for file in report.files] == [40, 31]
    assert json.loads(json.dumps(dataclasses.asdict(report)))["fingerprint"] == batches.fingerprint


def test_the_last_batch_is_filled_up_with_empty_rows(make):
    batches = make(rows=8, epochs=1)
    left = batches.report.num_rows % 8
    assert left  # else this tests nothing
    used = (batches.batch(batches.num_batches - 1).segments > 0).any(axis=1)
    assert used.tolist() == [True] * left + [False] * (8 - left)


def test_weights_repeat_and_draw(make):
    batches = make(weights=(2.0, 0.5), epochs=6)
    seen = Counter(ids(batches))
    assert all(seen[f"item-{number}"] == 12 for number in range(40))
    drawn = [seen[f"item-{number}"] for number in range(100, 131)]
    assert sum(drawn) == 6 * round(31 / 2)
    assert len(set(drawn)) > 2  # another half every epoch
    one_epoch = Counter(ids(make(weights=(1.0, 1.5), epochs=1)))
    assert Counter(one_epoch.values()) == {1: 40 + 31 - 16, 2: 16}


def test_epochs_and_seeds_differ_in_order(make):
    batches = make()
    order = ids(batches)
    assert order[:71] != order[71:]
    assert order != ids(make(seed=4))
    assert order == ids(make())


def test_other_examples_share_a_row_in_another_epoch(make):
    batches = make(rows=1)
    rows = [frozenset(batches.record_ids(index)) for index in range(batches.num_batches)]
    pairs = [row for row in rows if len(row) > 1]
    assert len(set(pairs)) > 0.6 * len(pairs)  # two equal epochs give a half


def test_a_start_continues_the_stream(make):
    batches = make()
    stream = list(batches.iterate())
    assert len(stream) == batches.num_batches > 5
    for start in (0, 3, batches.num_batches - 1, batches.num_batches):
        rest = list(batches.iterate(start))
        assert len(rest) == batches.num_batches - start
        assert all(map(equal, rest, stream[start:]))
        assert all(isinstance(batch, Batch) for batch in rest)


@pytest.mark.parametrize("split", [[6], [1, 5], [2, 2, 2], [1, 1, 1, 1, 1, 1]])
def test_processes_share_the_global_batch(make, split):
    batches = make()
    begins = np.cumsum([0, *split])
    shares = [
        batches.iterate(2, rows=range(begin, end)) for begin, end in itertools.pairwise(begins)
    ]
    count = 0
    for index, parts in enumerate(zip(*shares, strict=True), 2):
        whole = Batch(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))
        assert equal(whole, batches.batch(index))
        count += 1
    assert count == batches.num_batches - 2


def test_the_fingerprint_is_that_of_the_stream(make, write_list, make_item, files):
    same = make()
    assert make().fingerprint == same.fingerprint
    changes = (
        {"seed": 4},
        {"rows": 5},
        {"row_length": 255},
        {"epochs": 3},
        {"targets": "reference"},
        {"weights": (1.0, 2.0)},
        {"files": files[::-1]},
        {"files": files[:1]},
    )
    prints = {make(**change).fingerprint for change in changes} | {same.fingerprint}
    text = files[0].read_text()
    files[0].write_text(text.replace("answer 7", "answer 8"))
    prints.add(make().fingerprint)
    assert len(prints) == len(changes) + 2


def test_a_batch_that_does_not_exist_is_refused(make):
    batches = make()
    for index in (-1, batches.num_batches):
        with pytest.raises(IndexError, match=f"to {batches.num_batches - 1}, got {index}"):
            batches.batch(index)
    with pytest.raises(ValueError, match=f"from 0 to {batches.num_batches}"):
        batches.iterate(batches.num_batches + 1)
    for rows in ([], [6], [0, -1]):
        with pytest.raises(ValueError, match="rows from 0 to 5"):
            batches.iterate(rows=rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": []}, "one file or more"),
        ({"files": ["a.json", "a.json"]}, "each once"),
        ({"weights": (1.0,)}, "expected 2 weights, one a file, got 1"),
        ({"weights": (1.0, 0.0)}, "weights over 0"),
        ({"weights": (1.0, float("nan"))}, "weights over 0"),
        ({"weights": (1.0, 0.01)}, r"b\.json: weight 0\.01 chooses none of its 31 examples"),
        ({"row_length": 1}, "row_length of 2"),
        ({"rows": 0}, "rows and epochs"),
        ({"epochs": 0}, "rows and epochs"),
        ({"seed": -1}, "seed of 0"),
        ({"over_long": "wrap"}, "'drop' or 'cut', got 'wrap'"),
        ({"targets": "all"}, "got 'all'"),
        ({"on_bad_record": "ask"}, "got 'ask'"),
        ({"row_length": 60}, "71 examples are longer than row_length = 60"),
        ({"row_length": 60, "over_long": "cut"}, "71 have no target token left"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_bad_record_stops_or_is_skipped(make, write_list, make_item):
    path = write_list([make_item(1, "a", "b"), {"id": "2"}], "bad.json")
    with pytest.raises(RecordError, match=f"{path}:3"):
        make(files=[path])
    batches = make(files=[path], on_bad_record="skip")
    assert batches.report.files[0].bad_records == 1
    assert ids(batches) == ["item-1", "item-1"]


@settings(deadline=None)
@given(
    st.integers(0, 9),
    st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.75, 3.0]), min_size=2, max_size=2),
    st.integers(150, 500),
)
def test_any_mixture_is_seen_as_often_as_asked(
    byte_tokenizer, tmp_path_factory, seed, weights, row_length
):
    folder = tmp_path_factory.getbasetemp()
    counts, paths = (12, 7), []
    for name, count in zip("ab", counts, strict=True):
        turns = [
            [{"from": "human", "value": "q" * n}, {"from": "gpt", "value": "a" * (n % 5 + 1)}]
            for n in range(1, count + 1)
        ]
        items = [{"id": f"{name}{n}", "conversations": turn} for n, turn in enumerate(turns)]
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(items))
    changes = {"seed": seed, "weights": weights, "row_length": row_length, "rows": 2}
    batches = make_batches(byte_tokenizer, files=paths, **{**SETTINGS, **changes})
    seen = Counter(ids(batches))
    for name, count, weight in zip("ab", counts, weights, strict=True):
        times = [seen[f"{name}{n}"] for n in range(count)]
        part = round((weight - int(weight)) * count)
        assert sum(times) == 2 * (int(weight) * count + part)
        assert max(times) - min(times) <= 2


def test_real_rows_are_nearly_full(shared, qwen_tokenizer):
    for row_length, goal in ((3072, 0.99), (512, 0.98)):
        batches = make_batches(
            qwen_tokenizer,
            files=[shared / "data/2-stage/train.json"],
            **{**SETTINGS, "row_length": row_length, "epochs": 1},
        )
        assert batches.report.real_token_share > goal
