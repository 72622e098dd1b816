"""From tasks to scores: the tokens asked about, the outcomes, and what is written where."""

import dataclasses
import json

import pytest

from medcare_jax.conversion.bases import byte_tokenizer
from medcare_jax.data.chat import encode_dialogue
from medcare_jax.data.records import Record, Turn
from medcare_jax.evaluation import evaluator
from medcare_jax.evaluation.evaluator import end_token_ids, evaluate
from medcare_jax.evaluation.likelihood import OptionScore
from medcare_jax.evaluation.tasks import TASKS, ChoiceItem, Task, WritingItem
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from tests.helpers import FLOAT32, TINY, TINY_ADAPTERS, random_params

SETTINGS = dataclasses.replace(TINY["qwen2"], vocab_size=272, max_position_embeddings=160)
SECRET = "patient Doe"


def choice(number, options, gold, type_=""):
    return ChoiceItem(f"c{number}", type_, (Turn("human", f"{SECRET} {number}?"),), options, gold)


def writing(number, form, gold):
    return WritingItem(f"w{number}", form, (Turn("human", f"Code {number}."),), form, gold)


CHOICES = Task(
    "icd10_unseen",
    TASKS["icd10_unseen"],
    (
        choice(0, ("one", "two"), 1, "title"),
        choice(1, ("one", "two", "three"), 0, "chapter"),
        choice(2, ("three", "two"), 1, "title"),
    ),
    4,
)
LISTED = '[{"code": "I10", "title": "Flu"}]'
WRITINGS = Task(
    "icd10_coding",
    TASKS["icd10_coding"],
    (
        writing(0, "code_title", "I10 | Flu"),
        writing(1, "code_title", "I10 | Flu"),
        writing(2, "json", LISTED),
        writing(3, "json", LISTED),
    ),
    0,
)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def decoder():
    return Decoder(SETTINGS, TINY_ADAPTERS, NO_ADAPTERS, FLOAT32)


@pytest.fixture(scope="module")
def params(decoder):
    return random_params(decoder, seed=4)


@pytest.fixture
def asked(monkeypatch):
    """Replaces the model: the longest option is the likeliest. Keeps what it was asked."""
    seen = {}

    def longest(decoder, params, prompts, options, *, batch, on_done):
        seen.update(prompts=prompts, options=options)
        on_done(len(prompts))
        return [[OptionScore(float(len(o)), len(o)) for o in row] for row in options]

    monkeypatch.setattr(evaluator, "option_scores", longest)
    return seen


@pytest.fixture
def answering(monkeypatch, tokenizer):
    """Replaces the sampler by one that writes given texts."""

    def use(*texts):
        class Scripted:
            def __init__(self, *args, **options): ...

            def generate(self, prompts, **options):
                return [tokenizer(text).input_ids for text in texts[: len(prompts)]]

        monkeypatch.setattr(evaluator, "Sampler", Scripted)

    return use


def run(decoder, params, tokenizer, *tasks, **options):
    return evaluate(
        decoder, params, tokenizer, tasks, **{"batch": 2, "max_new_tokens": 6, **options}
    )


def test_the_likeliest_option_is_compared_with_the_gold(decoder, tokenizer, asked):
    told = []
    items = (choice(0, ("one", "three"), 1), choice(1, ("three", "one"), 1))
    results = run(
        decoder,
        {},
        tokenizer,
        CHOICES._replace(items=items),
        on_done=lambda task, items: told.append((task, items)),
    )
    assert results["icd10_unseen"]["scores"]["accuracy"]["outcomes"] == [1, 0]
    assert told == [("icd10_unseen", 2)]


def test_a_result_says_what_it_is_of(decoder, tokenizer, asked):
    items = (*CHOICES.items[:2], choice(2, ("three", "two"), 0, "title"))
    result = run(decoder, {}, tokenizer, CHOICES._replace(items=items))["icd10_unseen"]
    assert result["kind"] == "knowledge-intensive"
    assert result["metric"] == "accuracy"
    assert result["items"] == 3
    assert result["left_out"] == {"several right answers": 4, "too long": 0}
    assert result["seconds"] >= 0
    scores = result["scores"]["accuracy"]
    assert scores["outcomes"] == [0, 0, 1]
    assert scores["score"] == pytest.approx(1 / 3)
    assert 0 <= scores["low"] <= scores["score"] <= scores["high"] <= 1
    assert scores["types"] == {
        "chapter": {"score": 0.0, "items": 1},
        "title": {"score": 0.5, "items": 2},
    }


def test_options_have_the_tokens_that_training_has(decoder, tokenizer, asked):
    run(decoder, {}, tokenizer, CHOICES)
    for item, prompt, options in zip(
        CHOICES.items, asked["prompts"], asked["options"], strict=True
    ):
        for text, ids in zip(item.options, options, strict=True):
            turns = (*item.turns, Turn("gpt", text))
            example = encode_dialogue(Record("x", turns, None, "x:1"), tokenizer)
            learnt = example.tokens[example.is_target].tolist()
            assert learnt == [*ids, tokenizer.eos_token_id]
            assert example.tokens[: len(prompt)].tolist() == prompt


def test_formats_and_exact_answers_are_told_apart(decoder, tokenizer, answering):
    answering("I10 | Flu\n", "I10 | Cold", "I10 | Flu", '[{"title": "Flu", "code": "I10"}]')
    scores = run(decoder, {}, tokenizer, WRITINGS)["icd10_coding"]["scores"]
    assert scores["exact_match"]["outcomes"] == [1, 0, 0, 1]
    assert scores["valid_format"]["outcomes"] == [1, 1, 0, 1]


def test_prompts_that_do_not_fit_are_counted(decoder, tokenizer, asked):
    long = ChoiceItem("long", "", (Turn("human", "x" * 140),), ("one", "two"), 0)
    result = run(decoder, {}, tokenizer, CHOICES._replace(items=(long, *CHOICES.items)))
    assert result["icd10_unseen"]["left_out"]["too long"] == 1
    assert result["icd10_unseen"]["items"] == 3
    with pytest.raises(ValueError, match="all 1 prompts are longer"):
        run(decoder, {}, tokenizer, CHOICES._replace(items=(long,)))


def test_a_real_model_is_scored_and_its_samples_written_only_when_asked(
    decoder, params, tokenizer, tmp_path, capsys
):
    results = run(decoder, params, tokenizer, CHOICES, WRITINGS)
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "samples.jsonl"
    again = run(decoder, params, tokenizer, CHOICES, WRITINGS, samples_path=path)
    for result in (*results.values(), *again.values()):
        del result["seconds"]
    assert again == results == json.loads(json.dumps(results))
    assert SECRET not in json.dumps(results)
    assert capsys.readouterr().out == ""
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sample["id"] for sample in samples] == ["c0", "c1", "c2", "w0", "w1", "w2", "w3"]
    assert samples[0]["prompt"] == [{"role": "user", "content": f"{SECRET} 0?"}]
    for sample in samples[:3]:
        assert sample["chosen"] == sample["log_probs"].index(max(sample["log_probs"]))
        assert sample["outcomes"]["accuracy"] == int(sample["chosen"] == sample["gold"])
    assert all(isinstance(sample["output"], str) for sample in samples[3:])


def test_answers_end_at_any_control_token(tokenizer):
    names = set(tokenizer.convert_ids_to_tokens(list(end_token_ids(tokenizer))))
    assert names == {"<|im_end|>", "<|im_start|>", "<|endoftext|>"}
