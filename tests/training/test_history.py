"""The history of a stage: each step once, whatever was torn or lost; numbers only."""

import json

import pytest

from medcare_jax.training.history import History, read_history


def write(folder, steps, first_step=0):
    with History(folder, first_step=first_step) as history:
        for step in steps:
            history.add(step, {"loss": 1 / step, "tokens": 7.0})


def steps_in(folder):
    return [line["step"] for line in read_history(folder / "metrics.jsonl")]


def test_what_was_added_is_read_back(tmp_path):
    write(tmp_path / "mka", [1, 2, 3])
    lines = read_history(tmp_path / "mka" / "metrics.jsonl")
    assert lines == [{"step": s, "loss": 1 / s, "tokens": 7.0} for s in (1, 2, 3)]


def test_no_file_is_no_history(tmp_path):
    assert read_history(tmp_path / "metrics.jsonl") == []


def test_a_line_is_on_disk_as_soon_as_it_is_added(tmp_path):
    with History(tmp_path, first_step=0) as history:
        history.add(1, {"loss": 2.0})
        assert steps_in(tmp_path) == [1]


@pytest.mark.parametrize("cut", [1, 9, 30])
def test_a_torn_last_line_is_left_out_and_the_file_goes_on(tmp_path, cut):
    write(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-cut])
    assert steps_in(tmp_path) == [1, 2]
    write(tmp_path, [3, 4], first_step=2)
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("damage", [bytes(40), b"[1]", b'{"loss": 1.0}', b"\xff", b'{"step": "x"}'])
def test_a_damaged_line_is_named_and_left_out(tmp_path, damage, caplog):
    write(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], damage, lines[2], b""]))
    assert steps_in(tmp_path) == [1, 3]
    assert f"{path}:2: left out" in caplog.text
    write(tmp_path, [4], first_step=3)
    assert steps_in(tmp_path) == [1, 3, 4]


def test_lines_after_the_restored_step_are_removed(tmp_path):
    write(tmp_path, range(1, 8))
    write(tmp_path, [5, 6], first_step=4)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6]
    write(tmp_path, [], first_step=0)
    assert steps_in(tmp_path) == []


def test_the_file_is_closed_when_the_run_fails(tmp_path):
    history = History(tmp_path, first_step=0)
    history.add(1, {"loss": 2.0})
    history.__exit__(ArithmeticError, ArithmeticError(), None)
    with pytest.raises(ValueError, match="closed"):
        history.add(2, {"loss": 2.0})
    assert steps_in(tmp_path) == [1]


def test_tensorboard_has_the_same_numbers(tmp_path):
    write(tmp_path, [1, 2])
    files = list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert len(files) == 1
    content = files[0].read_bytes()
    assert content.count(b"loss") >= 2
    assert content.count(b"tokens") >= 2
