import dataclasses
import hashlib
import json

import numpy as np
import pytest

from medcare_jax.data.chat import encode_dialogue
from medcare_jax.data.examples import ExampleReader, Examples
from medcare_jax.data.records import RecordError, open_records


def read(tokenizer, path, **changes):
    settings = {
        "targets": "assistant",
        "row_length": 150,
        "over_long": "drop",
        "on_bad_record": "stop",
        "show_progress": False,
    }
    examples = Examples()
    reader = ExampleReader(tokenizer, **{**settings, **changes})
    return reader.read(path, examples, weight=2), examples


def test_examples_come_back_as_they_were_added(byte_tokenizer, write_list, make_item):
    path = write_list([make_item(number, "a" * number, "b") for number in (3, 1, 2)])
    report, examples = read(byte_tokenizer, path)
    examples.join()
    assert len(examples) == report.kept == 3
    assert examples.names[1] == ("item-1", f"{path}:3")
    for number, record in enumerate(open_records(path)):
        expected = encode_dialogue(record, byte_tokenizer)
        np.testing.assert_array_equal(examples[number].tokens, expected.tokens)
        np.testing.assert_array_equal(examples[number].is_target, expected.is_target)
        assert examples.lengths[number] == len(expected.tokens)
    assert report.tokens == examples.lengths.sum() == len(examples.tokens)
    assert report.target_tokens == 3 * len(["b", "<|im_end|>"])
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(json.dumps(dataclasses.asdict(report)))["weight"] == 2.0


def test_over_long_examples_are_dropped_or_cut_and_counted(byte_tokenizer, write_list, make_item):
    items = [make_item(1, "a", "b"), make_item(2, "a", "b" * 99), make_item(3, "a" * 99, "b")]
    path = write_list(items)
    dropped, examples = read(byte_tokenizer, path)
    assert (dropped.over_long, dropped.without_target, dropped.kept) == (2, 0, 1)
    cut, examples = read(byte_tokenizer, path, over_long="cut")
    examples.join()
    assert (cut.over_long, cut.without_target, cut.kept) == (2, 1, 2)
    assert [name for name, _ in examples.names] == ["item-1", "item-2"]
    whole = encode_dialogue(open_records(path)[1], byte_tokenizer)
    np.testing.assert_array_equal(examples[1].tokens, whole.tokens[:150])
    np.testing.assert_array_equal(examples[1].is_target, whole.is_target[:150])
    assert cut.records == cut.kept + cut.without_target == 3


def test_a_first_token_is_no_target_token(byte_tokenizer, write_list, make_item):
    path = write_list([make_item(1, "a", "b")])
    report, examples = read(byte_tokenizer, path, targets="reference")
    examples.join()
    assert examples[0].is_target[0]
    assert report.target_tokens == examples[0].is_target.sum() - 1
    cut, _ = read(byte_tokenizer, path, targets="reference", row_length=2, over_long="cut")
    assert (cut.over_long, cut.without_target, cut.kept) == (1, 1, 0)


def test_bad_records_stop_or_are_listed(byte_tokenizer, write_list, make_item):
    good, forged = make_item(1, "a", "b"), make_item(2, "a", "secret<|im_end|>")
    path = write_list([good, {"id": "x"}, forged, make_item(3, "c", "d")])
    with pytest.raises(RecordError, match=f"{path}:3: conversations"):
        read(byte_tokenizer, path)
    report, _ = read(byte_tokenizer, path, on_bad_record="skip")
    assert (report.records, report.bad_records, report.kept) == (4, 2, 2)
    assert [problem.split(": ")[0] for problem in report.problems] == [f"{path}:3", f"{path}:4"]
    assert "secret" not in str(report)
    with pytest.raises(RecordError, match=f"{path}:3: .*control token"):
        read(byte_tokenizer, write_list([good, forged]))


def test_turns_that_are_left_out_are_counted(byte_tokenizer, write_list, make_item):
    greeting = {"from": "gpt", "value": "Hello"}
    item = make_item(1, "a", "b")
    item["conversations"].insert(0, greeting)
    report, _ = read(byte_tokenizer, write_list([item, make_item(2, "a", "b")]))
    assert (report.leading_turns, report.kept) == (1, 2)
    assert report.target_tokens == 4


def test_a_prepared_folder_has_a_digest_too(byte_tokenizer, write_list, make_item, tmp_path):
    from medcare_jax.data.sources import prepare

    path = write_list([make_item(number, "a", "b") for number in range(4)])
    folder = prepare({"train": [path]}, tmp_path / "prepared")
    report, _ = read(byte_tokenizer, folder)
    named, _ = read(byte_tokenizer, folder / "train")
    other, _ = read(byte_tokenizer, prepare({"test": [path]}, tmp_path / "other"))
    assert report.kept == named.kept == 4
    assert report.sha256 == named.sha256 != other.sha256


def test_progress_is_drawn_when_asked(byte_tokenizer, write_list, make_item, capsys):
    path = write_list([make_item(1, "a", "b")])
    read(byte_tokenizer, path)
    assert capsys.readouterr().out == ""
    read(byte_tokenizer, path, show_progress=True)
    assert "tokenise train.json" in capsys.readouterr().out
