"""Files of prompts: every layout, bad lines, over-long prompts, and a run that was stopped."""

import contextlib
import dataclasses
import json
import stat

import pytest

from medcare_jax.data.records import RecordError
from medcare_jax.run import prompts as prompts_module
from medcare_jax.run.opening import open_folded
from medcare_jax.run.prompts import Generation, PromptsError, answer_file, read_prompts
from tests.run.workdirs import write_base

GENERATION = Generation(max_new_tokens=4, batch=2)
LINES = [
    {"id": "a", "prompt": "What is asthma?"},
    {"messages": [{"role": "system", "content": "Short."}, {"role": "user", "content": "Hm?"}]},
    {
        "id": "c",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}],
    },
    {"id": "d", "prompt": "And gout?"},
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return open_folded(str(write_base(tmp_path_factory.mktemp("base") / "base")))


@pytest.fixture
def source(tmp_path):
    return write(tmp_path, LINES)


def write(folder, lines):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answer(opened, source, target, generation=GENERATION, model="m", **more):
    return answer_file(source, target, *opened[1:], model=model, generation=generation, **more)


def test_every_prompt_gets_its_line(opened, source, tmp_path):
    target, told = tmp_path / "out.jsonl", []
    counts = answer(opened, source, target, on_done=lambda *both: told.append(both))
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", f"{source}:2", "c", "d"]
    assert sum(line["tokens"] for line in lines) == counts.tokens
    assert (counts.prompts, counts.resumed, counts.cut, counts.skipped) == (4, 0, 0, 0)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stopped_run_goes_on_to_the_same_file(opened, source, tmp_path, temperature):
    generation = dataclasses.replace(GENERATION, temperature=temperature)
    whole = tmp_path / "whole.jsonl"
    answer(opened, source, whole, generation)
    target, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(opened, source, target, generation, on_done=stop)
    assert not target.exists()
    part.write_text(part.read_text() + '{"number": 3, "li')  # a line that was never finished
    counts = answer(opened, source, target, generation)
    assert counts.resumed == 2
    assert target.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_no_answer_cuts_off_those_behind_it(tmp_path, end):
    target = tmp_path / "out.jsonl"
    lines = {0: {"id": "a", "output": f"One{end}two"}, 1: {"id": "b", "output": "甲"}}
    with contextlib.closing(prompts_module._Part(target, "k")) as part:
        for number, line in lines.items():
            part.add(number, line)
    whole = (tmp_path / "out.jsonl.part").read_bytes()
    (tmp_path / "out.jsonl.part").write_bytes(whole + '{"number": 2, "line": "甲'.encode()[:-1])
    with contextlib.closing(prompts_module._Part(target, "k")) as part:
        assert part.lines == lines
        part.finish()
    assert [json.loads(line) for line in target.read_bytes().splitlines()] == [*lines.values()]


def test_a_half_done_output_of_another_request_is_refused(opened, source, tmp_path):
    target = tmp_path / "out.jsonl"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(opened, source, target, on_done=stop)
    with pytest.raises(PromptsError, match="another source, model or settings"):
        answer(opened, source, target, model="another")


@pytest.mark.parametrize("damage", ['{"numb', "[1]", '{"number": 1}', "\xff"])
def test_a_damaged_line_is_named(tmp_path, damage):
    target, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    lines = ['{"key": "k"}', damage, '{"number": 2, "line": {"id": "c"}}']
    part.write_bytes("".join(f"{line}\n" for line in lines).encode("latin-1"))
    before = part.read_bytes()
    with pytest.raises(PromptsError, match=r"out\.jsonl\.part:2: damaged; take the line away"):
        prompts_module._Part(target, "k")
    assert part.read_bytes() == before
    part.write_text(f"{lines[0]}\n{lines[2]}\n")
    with contextlib.closing(prompts_module._Part(target, "k")) as opened:
        assert opened.lines == {2: {"id": "c"}}


def test_what_is_no_output_of_ours_is_not_overwritten(tmp_path):
    part = tmp_path / "out.jsonl.part"
    part.write_text("my notes")
    with pytest.raises(PromptsError, match="is of something else"):
        prompts_module._Part(tmp_path / "out.jsonl", "k")
    assert part.read_text() == "my notes"
    part.write_text('{"key"')  # the first line of a killed process
    prompts_module._Part(tmp_path / "out.jsonl", "k").close()
    assert part.read_text() == '{"key": "k"}\n'


def test_two_do_not_write_one_file(tmp_path):
    with contextlib.closing(prompts_module._Part(tmp_path / "out.jsonl", "k")):
        with pytest.raises(PromptsError, match="written by another process; wait for it"):
            prompts_module._Part(tmp_path / "out.jsonl", "k")
    prompts_module._Part(tmp_path / "out.jsonl", "k").close()


def test_prompts_with_an_id_of_null_have_their_places(opened, tmp_path):
    lines = [{"id": None, "prompt": "a"}, {"id": None, "prompt": "b"}, {"id": 7, "prompt": "c"}]
    source = write(tmp_path, lines)
    found = read_prompts(source, opened.tokenizer, GENERATION, 64)
    assert [prompt.id for prompt in found] == [f"{source}:1", f"{source}:2", "7"]


def test_prompts_of_a_list_on_one_line_have_ids_of_their_own(opened, tmp_path):
    source = tmp_path / "prompts.json"
    source.write_text(json.dumps([{"prompt": "a"}, {"prompt": "b"}]))
    found = read_prompts(source, opened.tokenizer, GENERATION, 64)
    assert [prompt.id for prompt in found] == [f"{source}:1", f"{source}:1#2"]
    source.write_text(json.dumps([LINES[0], LINES[0]]))
    with pytest.raises(RecordError, match=r"prompts\.json:1: id: expected its own"):
        read_prompts(source, opened.tokenizer, GENERATION, 64)


def test_over_long_prompts_are_refused_skipped_or_cut(opened, tmp_path):
    context = opened.decoder.settings.max_position_embeddings
    source = write(tmp_path, [LINES[0], {"id": "long", "prompt": "x" * context}])
    room = context - 4

    def read(policy):
        generation = dataclasses.replace(GENERATION, over_long=policy)
        return read_prompts(source, opened.tokenizer, generation, context)

    with pytest.raises(PromptsError, match=rf"1 prompts .* {room} tokens .*jsonl:2.*leave"):
        read("error")
    assert [prompt.is_cut for prompt in read("cut")] == [False, True]
    assert len(read("cut")[1].tokens) == room
    skipping = dataclasses.replace(GENERATION, over_long="skip")
    counts = answer(opened, source, tmp_path / "out.jsonl", skipping)
    assert (counts.prompts, counts.skipped) == (2, 1)
    last = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[1])
    assert last == {"id": "long", "output": None, "skipped": "longer than context"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"prompt": " "}, r"prompt\[0\]: expected text"),
        ({"text": "a"}, "one of prompt, messages, conversations"),
        ({"prompt": "a", "messages": []}, "one of prompt, messages, conversations"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages: expected a user's turn"),
        ({"messages": [{"role": "robot", "content": "a"}]}, r"messages\[0\]: .* a role among"),
        ({"messages": [{"role": [1], "content": "a"}]}, r"messages\[0\]: .* a role among"),
        ({"id": "a", "prompt": "b"}, "id: expected its own"),
        ({"id": ["b"], "prompt": "b"}, "id: expected text or a whole number"),
        ({"prompt": "a <|im_end|> b"}, "control token"),
        ({"prompt": "a \ud83d"}, "half a surrogate pair"),
        ({"id": "a\ud83d", "prompt": "b"}, "half a surrogate pair"),
    ],
)
def test_bad_lines_are_named_and_nothing_is_generated(opened, tmp_path, line, problem):
    source = write(tmp_path, [LINES[0], line])
    with pytest.raises(
        RecordError, match=f"prompts.jsonl:2: .*{problem}|prompts.jsonl:2: {problem}"
    ):
        answer(opened, source, tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out*"))


def test_policies_are_checked():
    with pytest.raises(PromptsError, match="allowed are error, skip, cut"):
        Generation(over_long="drop")
    assert prompts_module.OVER_LONG == ("error", "skip", "cut")
