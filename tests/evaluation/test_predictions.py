"""Answers that are in a file: the golden files through the front door, and bad files refused."""

import json

import pytest

from medcare_jax.data.records import RecordError
from medcare_jax.evaluation.predictions import score_predictions
from medcare_jax.evaluation.results import headline
from medcare_jax.evaluation.scoring.cblue_score import PredictionError
from medcare_jax.evaluation.tasks import load_tasks
from tests.evaluation.records import record, write
from tests.evaluation.scoring.golden import document, lines


@pytest.mark.parametrize("damage", ["exact", "light", "heavy"])
def test_cblue_with_structured_gold(shared, damage):
    folder = shared / "golden" / "scoring" / "cblue_invented"
    path, gold = folder / f"{damage}.questions.jsonl", folder / "gold_structured.json"
    results = score_predictions(path, "cblue", "reference", data=gold).results
    expected = document(folder / f"{damage}.scores.json")["summary"]["score"]
    assert headline(results["tasks"]["cblue"])["score"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("multiplechoice_acc", "cmb"),
        ("multiplechoice_en_acc", "medqa"),
        ("mmedbench_en_cot_acc", "mmedbench_en"),
    ],
)
def test_exams_with_their_gold_in_every_line(shared, name, task):
    path = shared / "golden" / "scoring" / "choice" / f"{name}.jsonl"
    scored = score_predictions(path, task, "reference")
    marks = [line["score"] for line in lines(path)]
    assert headline(scored.results["tasks"][task])["outcomes"] == marks
    assert [sample["scores"]["accuracy"] for sample in scored.samples] == marks


def answers(path, *texts, **info):
    path.write_text(
        "".join(
            json.dumps({"prompt": "?", "text": text, "additional_info": {**info}}) + "\n"
            for text in texts
        )
    )
    return path


@pytest.fixture
def folder(tmp_path):
    items = [record("Which?\nA. one\nB. two", "B", n) for n in range(2)]
    write(tmp_path, "medqa", *items)
    return tmp_path


def test_gold_may_come_from_a_folder(folder):
    path = answers(folder / "infer.jsonl", "The answer is B", "The answer is A")
    results = score_predictions(path, "medqa", "strict", data=folder).results
    assert headline(results["tasks"]["medqa"])["outcomes"] == [1, 0]
    assert results["data"]["medqa"][0]["file"] == "MedQA.json"


def test_both_files_of_cblue_are_named(shared, tmp_path):
    prompts = lines(shared / "golden" / "scoring" / "cblue_invented" / "exact.questions.jsonl")
    sts = [line for line in prompts if line["additional_info"]["task_dataset"] == "CHIP-STS"]
    items = []
    for line in sts:
        info = {**line["additional_info"], "answer": line["text"]}
        items.append(record("?", line["text"]) | {"eval": info})
    write(tmp_path, "cblue", *items)
    gold = shared / "golden" / "scoring" / "cblue_invented" / "gold_structured.json"
    structured = {"CHIP-STS": document(gold)["CHIP-STS"]}
    (tmp_path / "CBLUE_structured.json").write_text(json.dumps(structured, ensure_ascii=False))
    path = tmp_path / "infer.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in sts))
    results = score_predictions(path, "cblue", "reference", data=tmp_path).results
    (task,) = load_tasks(tmp_path, ["cblue"])
    assert results["data"]["cblue"] == task.data_files()
    assert [file["file"] for file in results["data"]["cblue"]] == [
        "CBLUE.json", "CBLUE_structured.json",
    ]  # fmt: skip


def test_answers_of_another_number_or_order_are_refused(folder):
    path = answers(folder / "infer.jsonl", "The answer is B")
    with pytest.raises(PredictionError, match="medqa: expected 2 predictions, .* got 1"):
        score_predictions(path, "medqa", "strict", data=folder)
    path = answers(folder / "infer.jsonl", "x", "y", sample_id="s1")
    with pytest.raises(PredictionError, match="prediction 1 to be of item 's0', got 's1'"):
        score_predictions(path, "medqa", "strict", data=folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected at least one answer"),
        ('["x"]', ":1: expected an object|:1: .*object"),
        ('{"prompt": "x"}', "infer.jsonl:1: text: expected the answer"),
        ('{"text": "x"}', "infer.jsonl:1: additional_info.answer: expected the gold.*--data"),
        ('{"text": "x", "additional_info": {}}', "additional_info.answer: expected the gold"),
        ('{"text": "x", "additional_info": 3}', "additional_info: expected an object"),
        ("{", "infer.jsonl:1"),
        ('{"text": "x \\ud83d", "additional_info": {"answer": "B"}}', "jsonl:1: .*surrogate"),
        ('{"text": "x", "additional_info": {"answer": "B", "type": "\\ud83d"}}', "surrogate"),
    ],
)
def test_a_bad_file_is_refused_by_its_line(tmp_path, text, message):
    path = tmp_path / "infer.jsonl"
    path.write_text(text)
    with pytest.raises(RecordError, match=message):
        score_predictions(path, "medqa", "reference")


@pytest.mark.parametrize("field", ["additional_info", "eval"])
def test_an_id_that_comes_twice_is_refused_by_both_lines(tmp_path, field):
    path = tmp_path / "infer.jsonl"
    ids = [1, None, "2", None, "1"]
    rows = [{"text": "x", field: {"answer": "B", "sample_id": each}} for each in ids]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problem = f"{path}:5: {field}.sample_id: expected an id of its own, got the one of {path}:1"
    with pytest.raises(RecordError) as caught:
        score_predictions(path, "medqa", "reference")
    assert str(caught.value) == problem
    path.write_text(json.dumps(rows[:4]))  # on one line
    assert len(score_predictions(path, "medqa", "reference").samples) == 4


def test_gold_in_one_file_is_for_cblue(folder):
    path = answers(folder / "infer.jsonl", "x", "y")
    with pytest.raises(ValueError, match="expected a folder"):
        score_predictions(path, "medqa", "reference", data=folder / "MedQA.json")


FORMAT = {"format": "code_title"}


@pytest.mark.parametrize(
    ("task", "info", "field"),
    [
        ("icd10_coding", {"answer": "I10 | Flu"}, "format"),
        ("icd10_coding", {"answer": "flu", **FORMAT}, "answer"),
        ("icd10_coding", {"answer": ["I10 | Flu"], **FORMAT}, "answer"),
        ("icd10_unseen", {"answer": 3}, "answer"),
        ("medqa", {"answer": 3}, "answer"),
        ("medqa", {"answer": []}, "answer"),
        ("medqa", {"answer": "doe"}, "answer"),
        ("medqa", {"answer": "B", "sample_id": ["s"]}, "sample_id"),
        ("medqa", {"answer": "B", "type": {"patient": "doe"}}, "type"),
        ("meqsum", {"answer": "B", "type": "doe " * 30}, "type"),
        ("cblue", {"answer": "doe", "task_dataset": "CMeEE-V2"}, "answer"),
        ("cblue", {"answer": ["doe"], "task_dataset": "CMeEE-V2"}, "answer"),
        ("cblue", {"answer": {"doe": 3}, "task_dataset": "IMCS-V2-MRG"}, "answer"),
        ("cblue", {"answer": "doe", "task_dataset": "other"}, "task_dataset"),
        ("cblue", {"answer": "doe", "task_dataset": []}, "task_dataset"),
        ("ner", {"answer": "doe", "answer_choices": ["x"]}, "answer"),
        ("medabs", {"answer": "a", "answer_choices": "abc"}, "answer_choices"),
        ("medabs", {"answer": "doe", "answer_choices": ["x"]}, "answer"),
        ("mts_dialog", {"answer": "doe", "answer_choices": ["x"]}, "answer"),
        ("meqsum", {"answer": 3}, "answer"),
        ("ccte", {"answer": ["doe"]}, "answer"),
    ],
)
def test_gold_of_another_shape_is_refused_by_its_line(tmp_path, task, info, field):
    path = tmp_path / "infer.jsonl"
    for name in ("additional_info", "eval"):
        path.write_text(json.dumps({"text": "x", name: info}))
        with pytest.raises(RecordError) as caught:
            score_predictions(path, task, "strict")
        assert str(caught.value).startswith(f"{path}:1: {name}.{field}: ")
        assert "doe" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "text", "info"),
    [
        ("icd10_coding", "I10 | Flu", {"answer": "I10 | Flu", **FORMAT}),
        ("icd10_unseen", "one", {"answer": "one"}),
        ("medqa", "The answer is B", {"answer": "two", "answer_idx": "B"}),
        ("medqa", "The answer is B and D", {"answer": ["B", "D"]}),
        ("medabs", "x", {"answer": "x", "answer_choices": ["x", "y"]}),
        ("cmb", "答案为AC", {"answer": "A、C", "sample_id": 3}),
    ],
)
def test_right_answers_to_gold_in_the_line(tmp_path, task, text, info):
    path = answers(tmp_path / "infer.jsonl", text, **info)
    results = score_predictions(path, task, "strict").results
    assert headline(results["tasks"][task])["outcomes"] == [1]


@pytest.mark.parametrize("gold", [["B"], "B"])
def test_gold_that_is_a_list_can_be_met_by_every_reference_rule(tmp_path, gold):
    for task, text in (("medqa", "The answer is B."), ("cmb", "答案为B")):
        path = answers(tmp_path / "infer.jsonl", text, answer=gold)
        results = score_predictions(path, task, "reference").results
        assert headline(results["tasks"][task])["outcomes"] == [1]
    path = answers(tmp_path / "infer.jsonl", "The answer is B.", answer_idx=gold)
    results = score_predictions(path, "mmedbench_en", "reference").results
    assert headline(results["tasks"]["mmedbench_en"])["outcomes"] == [1]
