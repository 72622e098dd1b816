"""Both ways to ask: the tokens asked about, the forced letter, what the rules make of it."""

import dataclasses

import pytest

from medcare_jax.conversion.bases import byte_tokenizer
from medcare_jax.data.chat import encode_dialogue
from medcare_jax.data.records import Record, Turn
from medcare_jax.evaluation import asking
from medcare_jax.evaluation.asking import Subject, ask, messages_of, question, room
from medcare_jax.evaluation.items import Item
from medcare_jax.evaluation.likelihood import OptionScore
from medcare_jax.evaluation.tasks import SUFFIXES, TASKS
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from tests.helpers import FLOAT32, TINY, TINY_ADAPTERS, random_params

SETTINGS = dataclasses.replace(TINY["qwen2"], vocab_size=272, max_position_embeddings=400)
MEDQA, ICD10 = TASKS["medqa"], TASKS["icd10_unseen"]
OPTIONS = {"A": "one", "B": "three", "C": "seventeen"}


def exam(gold="B"):
    return Item("1", "", (Turn("human", "Which?\nA. one\nB. three"),), gold, options=OPTIONS)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def subject(tokenizer):
    return Subject(Decoder(SETTINGS, TINY_ADAPTERS, NO_ADAPTERS, FLOAT32), {}, tokenizer)


@pytest.fixture
def asked(monkeypatch, tokenizer):
    """Replaces the model: the later of options in the alphabet is likelier. Keeps the questions."""
    seen = {}

    def last(decoder, params, prompts, options, *, batch, on_done):
        decode = lambda ids: tokenizer.decode(ids)
        seen["prompts"] = [decode(prompt) for prompt in prompts]
        seen["options"] = [[decode(ids) for ids in row] for row in options]
        seen["ids"] = options
        on_done(len(prompts))
        return [[OptionScore(float(ids[0]), len(ids), False) for ids in row] for row in options]

    monkeypatch.setattr(asking, "option_scores", last)
    return seen


@pytest.fixture
def answering(monkeypatch, tokenizer):
    """Replaces the sampler by one that writes given texts."""

    def use(*texts):
        class Scripted:
            def __init__(self, *args, **options): ...

            def generate(self, prompts, **options):
                return [tokenizer(text).input_ids for text in texts[: len(prompts)]]

        monkeypatch.setattr(asking, "Sampler", Scripted)

    return use


def answers(subject, spec, items, protocol, rules="reference"):
    questions = [question(subject, spec, item) for item in items]
    return ask(subject, spec, questions, protocol, rules=rules, batch=2, max_new_tokens=9)


def test_an_exam_asks_once_for_the_format():
    (message,) = messages_of(MEDQA, exam())
    assert message["content"] == "Which?\nA. one\nB. three" + SUFFIXES["en"]
    twice = exam()._replace(turns=(Turn("human", message["content"]),))
    assert messages_of(MEDQA, twice) == [message]
    assert messages_of(ICD10, exam())[0]["content"].endswith("three")


def test_letters_and_texts_are_weighed_behind_the_announcement(subject, asked):
    (answer,) = answers(subject, MEDQA, [exam("C")], "likelihood")
    assert asked["prompts"][0].endswith("assistant\nThe answer is ")
    assert asked["options"] == [["A", "B", "C", "one", "three", "seventeen"]]
    assert (answer.output, answer.grade.parsed) == ("C", "C")
    assert answer.grade.scores == {"accuracy": 1, "accuracy_text": 0, "accuracy_text_mean": 0}
    assert answer.details["text_tokens"] == [3, 5, 9]
    assert len(answer.details["log_probs"]) == 3


def test_one_letter_is_wrong_where_several_are_right(subject, asked):
    (answer,) = answers(subject, MEDQA, [exam("CB")], "likelihood")
    assert answer.grade.scores["accuracy"] == 0


def test_options_by_text_have_the_tokens_that_training_has(subject, tokenizer, asked):
    item = Item("1", "", (Turn("human", "Which?"),), "two", options={"one": "one", "two": "two"})
    (answer,) = answers(subject, ICD10, [item], "likelihood")
    assert answer.grade.scores == {"accuracy": 1, "accuracy_text_mean": 1}
    for text, ids in zip(item.options, asked["ids"][0], strict=True):
        example = encode_dialogue(
            Record("x", (*item.turns, Turn("gpt", text)), None, "x:1"), tokenizer
        )
        learnt = example.tokens[example.is_target].tolist()
        assert learnt == [*ids, tokenizer.eos_token_id]


def test_the_reference_forces_a_letter_behind_every_answer(subject, asked, answering):
    answering("It is low. The answer is B.", "No idea")
    first, second = answers(subject, MEDQA, [exam(), exam("C")], "generate")
    assert first.output == "It is low. The answer is B. \nThe answer is C"
    assert (first.grade.parsed, first.grade.scores) == ("C", {"accuracy": 0})
    assert first.details == {"read": "B", "forced": "C"}
    assert second.output == "No idea. \nThe answer is C"
    assert second.grade.scores == {"accuracy": 1}
    assert [answer.is_unreadable for answer in (first, second)] == [False, True]


def test_strict_forces_a_letter_only_where_none_was_read(subject, asked, answering):
    answering("It is low. The answer is B.", "No idea")
    first, second = answers(subject, MEDQA, [exam(), exam("C")], "generate", "strict")
    assert first.output == "It is low. The answer is B."
    assert first.grade.scores == second.grade.scores == {"accuracy": 1}
    assert second.details == {"read": None, "forced": "C"}


def test_an_answer_that_grows_when_read_anew_is_cut_and_counted(subject, asked, answering, caplog):
    context = SETTINGS.max_position_embeddings
    answering("No idea", "a" * context)
    questions = [question(subject, MEDQA, item) for item in (exam(), exam())]
    how = {"rules": "reference", "batch": 2, "max_new_tokens": 9}
    _, second = ask(subject, MEDQA, questions, "generate", **how)
    assert "1 of 2 answers lose their beginning" in caplog.text
    lengths = [len(ids) for ids in subject.tokenizer(asked["prompts"]).input_ids]
    assert lengths[0] < lengths[1] == context - 1  # and one for the letter
    assert asked["prompts"][1].startswith(asked["prompts"][0].split("No idea")[0])
    assert second.output.startswith("a" * context), "the answer that is kept is whole"
    caplog.clear()
    ask(subject, MEDQA, questions[:1], "generate", **how)
    assert caplog.text == ""


def test_a_chinese_letter_is_forced_in_chinese(subject, asked, answering):
    answering("选")
    (answer,) = answers(subject, TASKS["cmb"], [exam("C")], "generate")
    assert answer.output == "选. \n答案为C"
    assert answer.grade.scores == {"accuracy": 1}


def test_letters_keep_their_own_token_whatever_the_tokenizer_joins(tokenizer):
    shared, tails = asking._continuations(tokenizer, "is ", ["A", "AB"])
    assert (tokenizer.decode(shared), [tokenizer.decode(tail) for tail in tails]) == (
        "is ",
        ["A", "AB"],
    )
    assert asking._continuations(tokenizer, "", ["ab", "ac"])[0] == []


def test_a_real_model_answers_both_ways_within_its_room(tokenizer):
    decoder = Decoder(SETTINGS, TINY_ADAPTERS, NO_ADAPTERS, FLOAT32)
    subject = Subject(decoder, random_params(decoder, seed=4), tokenizer)
    for protocol in ("generate", "likelihood"):
        for answer in answers(subject, MEDQA, [exam(), exam("A")], protocol):
            assert answer.grade.parsed in OPTIONS
        taken = room(subject, MEDQA, exam(), protocol, 9)
        assert taken == (25 if protocol == "generate" else len("The answer is seventeen"))


def test_a_control_token_in_a_prompt_names_the_item(subject):
    bad = exam()._replace(turns=(Turn("human", "<|im_end|>"),))
    with pytest.raises(ValueError, match=r"MedQA \(US\), item '1': .*control token"):
        question(subject, MEDQA, bad)
