"""Exam answers: every golden line of the reference's marks, and the strict rules by example."""

import pytest

from medcare_jax.evaluation.scoring.choice import REFERENCE, any_text, strict
from tests.evaluation.scoring.golden import lines


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_marks_are_the_references(shared, name):
    golden = lines(shared / "golden" / "scoring" / "choice" / f"{name}.jsonl")
    assert len(golden) >= 30
    for line in golden:
        gold = line["additional_info"].get("answer", line["additional_info"].get("answer_idx"))
        assert REFERENCE[name](line["text"], gold).is_right == bool(line["score"]), line["case"]


def test_right_texts_are_the_references(shared):
    golden = lines(shared / "golden" / "scoring" / "choice" / "record_acc.jsonl")
    assert {line["score"] for line in golden} == {0, 1}
    for line in golden:
        golds = [answer["text"] for answer in line["additional_info"]["answers"]]
        assert any_text(line["text"], golds) == bool(line["score"]), line["case"]


@pytest.mark.parametrize(
    ("name", "text", "letters"),
    [
        ("multiplechoice_acc", "答案为C、A。", "AC"),
        ("multiplechoice_acc", "A对B错", "A"),
        ("multiplechoice_acc", "D错，为本题正确答案", "D"),
        ("multiplechoice_acc", "不知道", None),
        ("multiplechoice_acc", "答案为。", None),
        ("multiplechoice_en_acc", "The answer is D or E.", "DE"),
        ("multiplechoice_en_acc", "Perhaps D.", None),
        ("mmedbench_en_cot_acc", "The answer is D. Else", "D"),
        ("mmedbench_en_cot_acc", "The answer is D", None),
        ("mmedbench_zh_cot_acc", "答案为AB", "AB"),
        ("answer_acc", "No", None),
    ],
)
def test_what_the_references_rules_read(name, text, letters):
    assert REFERENCE[name](text, "Z").letters == letters


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("The answer is B.", "B"),
        ("THE ANSWER IS (B)", "B"),
        ("The correct answer is: **B**", "B"),
        ("The answer is B. hypoparathyroidism", "B"),
        ("The answer is B because A is false.", "B"),
        ("The answer is A.\nNo, the answer is B.\nHope this helps.", "B"),
        ("The answer is A and C.", "AC"),
        ("答案为ABD。\n以上仅供参考。", "ABD"),
        ("答案是：A、 C", "AC"),
        ("答案：C。", "C"),
        ("The answer is Aspirin.", None),
        ("The answer is b.", None),
        ("The answer is F.", None),
        ("The answer is A or B.", None),
        ("答案为A或B", None),
        ("The answer is A. Or rather, the answer is unclear.", "A"),
        ("The answer is B. Thus the answer is correct.", "B"),
        ("The answer is A. No, the answer is B or C.", None),
        ("The answer is option B.", "B"),
        ("The answer is options A and C.", "AC"),
        ("答案是选项B。", "B"),
        (r"The answer is $\boxed{B}$.", "B"),
        (r"Hence \boxed{\text{B}}", "B"),
        (r"\boxed{B or C}", None),
        ("Answer: B", "B"),
        ("**Answer**: (B) aspirin", "B"),
        ("**答案**：B", "B"),
        ("Answer: A", "A"),
        ("B", None),
        ("", None),
    ],
)
def test_the_strict_rules(text, letters):
    assert strict(text, "B").letters == letters
    assert strict(text, "B").is_right == (letters == "B")


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("The answer is B, I believe.", "B"),
        ("The answer is B and I'm sure.", "B"),
        ("The answer is B\nA patient with gout", "B"),
        ("The answer is B; C is a distractor.", "B"),
        ("The answer is B, I.", None),
        ("The answer is A and C because", "AC"),
        ("Answer: A patient with gout", None),
        ("Answer: A because", "A"),
        ("答案为B，A选项错误", "B"),
        ("答案为B A错误", "B"),
        ("The answer is A, C, and D.", "ACD"),
        ("The answer is A, B, or C.", None),
        ("The answer is ACE inhibitors.", None),
        ("The answer is AC because", "AC"),
        ("The answer is AC.", "AC"),
        ("答案为A，C。", "AC"),
        ("答案为A，C和D", "ACD"),
        ("答案为A、C选项", "AC"),
    ],
)
def test_strict_takes_no_word_and_no_other_sentence_for_a_letter(text, letters):
    assert strict(text, "B").letters == letters


def test_strict_wants_all_letters_and_no_other():
    assert strict("答案为CA", "AC").is_right
    assert not strict("答案为A", "AC").is_right
    assert not strict("答案为ACD", "AC").is_right


def test_strict_knows_the_options_of_the_question():
    assert strict("The answer is C.", "C", options="ABC").is_right
    assert strict("The answer is D.", "C", options="ABC").letters is None
