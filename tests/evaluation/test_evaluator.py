"""Tasks to the two files: complete, partial, gone on with, and without a word of text."""

import dataclasses
import json

import pytest

from medcare_jax.conversion.bases import byte_tokenizer
from medcare_jax.data.records import Turn
from medcare_jax.evaluation import evaluator
from medcare_jax.evaluation.asking import Answer, Subject
from medcare_jax.evaluation.evaluator import Options, evaluate, num_answers
from medcare_jax.evaluation.grading import grade
from medcare_jax.evaluation.items import Item
from medcare_jax.evaluation.results import headline, read_results, read_samples
from medcare_jax.evaluation.tasks import TASKS, Task
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from tests.helpers import FLOAT32, TINY, TINY_ADAPTERS, random_params

SETTINGS = dataclasses.replace(TINY["qwen2"], vocab_size=272, max_position_embeddings=330)
SECRET = "patient Doe"
MODEL = {"name": "m", "kind": "run", "digest": "0", "tokenizer": "1", "keep": [], "stage": "da",
         "step": 3}  # fmt: skip
BOTH = Options(protocols=("generate", "likelihood"), batch=1, max_new_tokens=6)


def exam(number, gold="B", more=""):
    text = f"{SECRET} {number}?{more}\nA. one\nB. two"
    options = {"A": "one", "B": "two"}
    return Item(f"e{number}", f"t{number % 2}", (Turn("human", text),), gold, options)


def note(number):
    gold = "I10 | Flu"
    return Item(f"n{number}", "", (Turn("human", f"{SECRET}."),), gold, choices=("code_title",))


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "data" / "MedQA.json"
    path.parent.mkdir()
    path.write_text("[]")
    return [
        Task("medqa", TASKS["medqa"], path, tuple(exam(n, more="!" * n) for n in range(6))),
        Task("icd10_coding", TASKS["icd10_coding"], path, tuple(note(n) for n in range(2))),
    ]


@pytest.fixture
def subject():
    decoder = Decoder(SETTINGS, TINY_ADAPTERS, NO_ADAPTERS, FLOAT32)
    return Subject(decoder, random_params(decoder, seed=4), byte_tokenizer())


class Killed(Exception):
    """Stands for the signal that ends the process."""


@pytest.fixture
def scripted(monkeypatch):
    """Replaces the model: the first letter; counts its calls, and stops at one if told to."""
    calls = []

    def answer(subject, spec, questions, protocol, *, rules, on_done, **options):
        calls.append([each.item.id for each in questions])
        if len(calls) == calls_until_kill[0]:
            raise Killed
        on_done(len(questions))
        text = "The answer is A" if spec.family == "exam" else "I10 | Flu"
        grades = [grade(spec, each.item, text, rules) for each in questions]
        return [Answer(text, mine, False, {}) for mine in grades]

    calls_until_kill = [0]
    monkeypatch.setattr(evaluator, "ask", answer)
    return calls, calls_until_kill


def run(subject, tasks, folder, options=BOTH, *, write_samples=True, model=MODEL, **more):
    return evaluate(
        subject, model, tasks, options, folder, versions={}, write_samples=write_samples, **more
    )


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_real_model_leaves_both_files(subject, tasks, tmp_path, capsys):
    told = []
    results = run(subject, tasks, tmp_path / "out", on_done=lambda *news: told.append(news))
    assert results == read_results(tmp_path / "out") == json.loads(json.dumps(results))
    assert results["status"] == "complete"
    assert results["settings"]["protocols"] == ["generate", "likelihood"]
    assert SECRET not in json.dumps(results)
    assert capsys.readouterr().out == ""
    medqa, coding = results["tasks"]["medqa"], results["tasks"]["icd10_coding"]
    assert (medqa["items"], medqa["protocol"], coding["protocol"]) == (6, "generate", "generate")
    assert list(medqa["protocols"]) == ["generate", "likelihood"]
    assert list(coding["protocols"]) == ["generate"]
    assert set(headline(medqa)["types"]) == {"t0", "t1"}
    assert sum(items for _, items in told) == num_answers(tasks, BOTH.protocols) == 14
    samples = list(read_samples(tmp_path / "out" / "samples.jsonl"))
    ids = [f"e{n}" for n in range(6)]
    assert [s["id"] for s in samples] == [*ids, *ids, "n0", "n1"]
    assert [s["scores"]["accuracy"] for s in samples[:6]] == headline(medqa)["outcomes"]
    assert samples[0]["prompt"][0]["content"].startswith(f"{SECRET} 0?")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "results.json",
        "samples.jsonl",
    ]


@pytest.mark.parametrize("kill", range(1, 6))
@pytest.mark.parametrize("write_samples", [True, False])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(
    subject, tasks, tmp_path, scripted, kill, write_samples
):
    calls, calls_until_kill = scripted
    run(subject, tasks, tmp_path / "whole", write_samples=write_samples)
    whole = [*calls]
    assert len(whole) == 5  # chunks of 4 batches: 2 + 2 of the exam, 1 of the coding
    calls.clear()
    calls_until_kill[0] = kill
    with pytest.raises(Killed):
        run(subject, tasks, tmp_path / "cut", write_samples=write_samples)
    assert read_results(tmp_path / "cut")["status"] == "partial"
    done, calls_until_kill[0] = kill - 1, 0
    calls.clear()
    run(subject, tasks, tmp_path / "cut", write_samples=write_samples)
    kept = done if write_samples else done - done % 2 if done < 4 else 4
    assert calls == whole[kept:]
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


def test_done_once_it_is_done(subject, tasks, tmp_path, scripted):
    calls, _ = scripted
    results = run(subject, tasks, tmp_path / "out")
    calls.clear()
    assert run(subject, tasks, tmp_path / "out") == results
    assert calls == []
    settings = {**results["settings"], "judge": {"ccte": {"model": "j"}}}
    judged = {**results, "settings": settings, "status": "partial"}
    (tmp_path / "out" / "results.json").write_text(json.dumps(judged))
    assert run(subject, tasks, tmp_path / "out") == judged
    assert calls == []


@pytest.mark.parametrize(("last", "write_samples"), [("write", True), ("write", False), ("", True)])
def test_killed_at_its_end_it_is_whole_after_all(
    subject, tasks, tmp_path, scripted, monkeypatch, last, write_samples
):
    """Before the last write of the results, or before the journal goes."""
    run(subject, tasks, tmp_path / "whole", write_samples=write_samples)
    write = evaluator.write_results

    def kill(*_):
        raise Killed

    def write_unless_last(folder, results):
        (kill if results["status"] == "complete" else write)(folder, results)

    with monkeypatch.context() as patched:
        if last == "write":
            patched.setattr(evaluator, "write_results", write_unless_last)
        else:
            patched.setattr(evaluator.Journal, "discard", kill)
        with pytest.raises(Killed):
            run(subject, tasks, tmp_path / "cut", write_samples=write_samples)
    run(subject, tasks, tmp_path / "cut", write_samples=write_samples)
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("change", ["model", "rules", "items"])
def test_another_evaluation_is_begun_anew(subject, tasks, tmp_path, scripted, change):
    calls, _ = scripted
    run(subject, tasks, tmp_path / "out")
    calls.clear()
    options = BOTH._replace(rules="strict") if change == "rules" else BOTH
    model = {**MODEL, "digest": "1"} if change == "model" else MODEL
    if change == "items":
        tasks[0].path.write_text("[ ]")
    run(subject, tasks, tmp_path / "out", options, model=model)
    assert len(calls) == 5


def test_without_samples_no_text_is_written_anywhere(subject, tasks, tmp_path, scripted):
    run(subject, tasks, tmp_path / "out", write_samples=False)
    assert list(bytes_of(tmp_path / "out")) == ["results.json"]
    assert SECRET not in (tmp_path / "out" / "results.json").read_text()


@pytest.mark.parametrize("rules", ["reference", "strict"])
def test_without_samples_those_of_an_earlier_evaluation_go(
    subject, tasks, tmp_path, scripted, rules
):
    run(subject, tasks, tmp_path / "out")
    for name in ("samples.jsonl.part", ".samples.jsonl.part", ".report.html.part", "report.html"):
        (tmp_path / "out" / name).write_text(SECRET)
    run(subject, tasks, tmp_path / "out", BOTH._replace(rules=rules), write_samples=False)
    assert list(bytes_of(tmp_path / "out")) == ["results.json"]


def test_samples_of_another_evaluation_never_stand_beside_its_scores(
    subject, tasks, tmp_path, scripted
):
    _, calls_until_kill = scripted
    run(subject, tasks, tmp_path / "out")
    calls_until_kill[0] = 6
    with pytest.raises(Killed):
        run(subject, tasks, tmp_path / "out", BOTH._replace(rules="strict"))
    assert sorted(bytes_of(tmp_path / "out")) == ["results.json", "samples.jsonl.part"]


def test_another_process_of_the_same_evaluation_writes_nothing(subject, tasks, tmp_path, scripted):
    results = run(subject, tasks, tmp_path / "out", is_writer=False)
    assert results["status"] == "complete"
    written = (
        {p: p.stat().st_size for p in tmp_path.joinpath("out").iterdir()}
        if (tmp_path / "out").exists()
        else {}
    )
    assert not any(written.values())


def test_prompts_that_do_not_fit_are_counted(subject, tasks, tmp_path, scripted):
    long = exam(9, more="x" * 330)
    tasks = [tasks[0]._replace(items=(long, *tasks[0].items))]
    entry = run(subject, tasks, tmp_path / "out")["tasks"]["medqa"]
    assert entry["items"] == 6
    assert entry["left_out"] == {"longer than the context": 1}
    tasks = [tasks[0]._replace(items=(long,)), *tasks[1:]]
    results = run(subject, tasks, tmp_path / "none")
    assert results["status"] == "complete"
    assert headline(results["tasks"]["medqa"]) is None
