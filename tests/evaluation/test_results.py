"""The files of an evaluation: read back as written; what is no such file is refused by name."""

import json

import pytest

from medcare_jax.evaluation.results import (
    FORMAT,
    ResultsError,
    headline,
    read_results,
    read_samples,
    write_results,
)

SCORE = {"score": 0.5, "low": 0.1, "high": 0.9, "types": {}, "outcomes": [0, 1]}
TASK = {
    "title": "MedQA",
    "language": "en",
    "kind": "knowledge-intensive",
    "metric": "accuracy",
    "protocol": "generate",
    "items": 2,
    "left_out": {"too long": 0},
    "protocols": {"generate": {"unreadable": 0.0, "scores": {"accuracy": SCORE}}},
}
RESULTS = {
    "format": FORMAT,
    "status": "complete",
    "model": {
        "name": "embedded",
        "kind": "embedded",
        "digest": "0" * 64,
        "tokenizer": "",
        "keep": [],
        "stage": None,
        "step": None,
    },
    "settings": {},
    "versions": {},
    "data": {},
    "tasks": {"medqa": TASK},
}
SAMPLE = {
    "task": "medqa",
    "protocol": "generate",
    "id": "1",
    "type": "",
    "prompt": [{"role": "user", "content": "哪个？"}],
    "output": "B",
    "parsed": "B",
    "gold": "B",
    "scores": {"accuracy": 1},
    "details": {},
}


def test_results_are_read_back(tmp_path):
    assert read_results(tmp_path) is None
    path = write_results(tmp_path, RESULTS)
    assert path == tmp_path / "results.json"
    assert read_results(tmp_path) == RESULTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "format 1, got None"),
        (json.dumps({**RESULTS, "format": 0}), "format 1, got 0; score anew"),
        (json.dumps({"format": FORMAT, **{k: RESULTS[k] for k in ("status",)}}), "data, model"),
    ],
)
def test_what_are_no_results_is_refused(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultsError, match=message):
        read_results(tmp_path)


def test_the_headline_is_of_one_protocol_and_metric():
    assert headline(TASK) == SCORE
    assert headline({**TASK, "protocol": "likelihood"}) is None
    assert headline({**TASK, "metric": "f1"}) is None


def test_samples_are_read_line_by_line(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(SAMPLE, ensure_ascii=False) + "\n" for _ in range(2)))
    assert list(read_samples(path)) == [SAMPLE, SAMPLE]


@pytest.mark.parametrize("line", ["{", json.dumps({**SAMPLE} | {"task": 1})[:-20], "{}"])
def test_a_bad_sample_is_named_by_its_line(tmp_path, line):
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(SAMPLE) + "\n" + line + "\n")
    with pytest.raises(ResultsError, match="samples.jsonl:2: expected"):
        list(read_samples(path))
