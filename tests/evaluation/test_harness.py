"""The harness's own Hugging Face model and ours, on the same weights and the same local tasks.

The harness takes five seconds to import, so only tests that run do that, and no collection.
"""

import dataclasses
import json

import numpy as np
import pytest

from medcare_jax.conversion.bases import byte_tokenizer
from medcare_jax.conversion.embedded import find_embedded_model
from medcare_jax.conversion.huggingface import (
    load_base,
    load_generation_config,
    load_tokenizer,
    save_huggingface,
)
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from tests.helpers import FLOAT32, TINY, TINY_ADAPTERS, random_params

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # the harness and its packages warn of themselves
]

# Of few lengths, since each costs a compilation; the third is longer than the context of 64.
QUESTIONS = [
    {"question": "Which nerve, please?", "options": ["radial", "axillary", "ulnar"], "gold": 1},
    {"question": "发热、咳嗽?", "options": ["肺", "流", "a"], "gold": 0},
    {"question": "word " * 20, "options": ["one", "two", "three"], "gold": 2},
]

CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}, cache_dir: CACHE}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: gold
doc_to_choice: "{{options}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}, cache_dir: CACHE}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{options}}"
metric_list: [{metric: bits_per_byte}]
"""
WRITING = """
task: local_writing
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}, cache_dir: CACHE}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{options[gold]}}"
generation_kwargs: {until: ["STOPS"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""
TASKS = ["local_choice", "local_rolling", "local_writing"]


def write_tasks(folder, stops="e"):
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in QUESTIONS))
    for number, text in enumerate((CHOICE, ROLLING, WRITING)):
        filled = text.replace("DATA", str(data)).replace("CACHE", str(folder / "cache"))
        (folder / f"{number}.yaml").write_text(filled.replace("STOPS", stops))
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


def answers(model, manager, tasks=TASKS):
    """Raw answers of a model: by task and item, what each request gave; and the scores."""
    import lm_eval

    found = lm_eval.simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=0)
    raw = {
        task: [sample["resps"] for sample in sorted(samples, key=lambda s: s["doc_id"])]
        for task, samples in found["samples"].items()
    }
    return raw, found["results"]


def open_ours(folder, **options):
    from medcare_jax.evaluation.harness import DecoderLM

    settings, params = load_base(folder, dtype="float32")
    decoder = Decoder(settings, TINY_ADAPTERS, NO_ADAPTERS, FLOAT32)
    return DecoderLM(decoder, params, load_tokenizer(folder), **options)


def open_theirs(folder, **options):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model with random weights whose context is shorter than the longest question."""
    sizes = dataclasses.replace(TINY["qwen2"], vocab_size=300)
    decoder = Decoder(sizes, TINY_ADAPTERS, NO_ADAPTERS, FLOAT32)
    path = tmp_path_factory.mktemp("model") / "m"
    tokenizer = byte_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id}
    save_huggingface(path, sizes, random_params(decoder, seed=5), tokenizer, generation_config=ends)
    return path


def check_choices(ours, theirs, atol):
    """Same log-likelihoods, same greedy flags."""
    for mine, hers in zip(ours["local_choice"], theirs["local_choice"], strict=True):
        for ((first, greedy),), ((second, also),) in zip(mine, hers, strict=True):
            np.testing.assert_allclose(first, second, atol=atol)
            assert greedy == also


def check_equal(ours, theirs, atol):
    """The same in all three tasks."""
    check_choices(ours, theirs, atol)
    np.testing.assert_allclose(
        np.ravel(ours["local_rolling"]), np.ravel(theirs["local_rolling"]), atol=atol, rtol=1e-5
    )
    assert ours["local_writing"] == theirs["local_writing"]


def test_choices_equal_the_harness_own(folder, tmp_path, caplog):
    """One of them with a question longer than the context, whose beginning both models drop."""
    manager = write_tasks(tmp_path)
    ours, _ = answers(open_ours(folder, batch_size=3), manager, TASKS[:1])
    assert "requests lose their beginning" in caplog.text
    theirs, _ = answers(open_theirs(folder, batch_size=2), manager, TASKS[:1])
    check_choices(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_answers_equal_the_harness_own(folder, tmp_path):
    """With a question longer than the context, whose beginning both models drop."""
    manager = write_tasks(tmp_path)
    ours, our_scores = answers(open_ours(folder, batch_size=3), manager)
    hf = open_theirs(folder, batch_size=2)
    theirs, their_scores = answers(hf, manager)
    check_equal(ours, theirs, atol=1e-4)
    assert any(text for ((text,),) in ours["local_writing"]), "something was written"
    for task in TASKS:
        for name, value in their_scores[task].items():
            if isinstance(value, float):
                assert our_scores[task][name] == pytest.approx(value, rel=1e-5)


def test_chat_templates_and_tokens_are_the_harness_own(folder):
    ours = open_ours(folder)
    hf = open_theirs(folder)
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "咳嗽?"}]
    begun = [*asked, {"role": "assistant", "content": "The answer"}]
    for history, is_prompt in ((asked, True), (begun, False)):
        text = ours.apply_chat_template(history, add_generation_prompt=is_prompt)
        assert text == hf.apply_chat_template(history, add_generation_prompt=is_prompt)
        assert ours.tok_encode(text) == hf.tok_encode(text)
    assert ours.chat_template(True) == hf.chat_template(True)
    assert ours.tokenizer_name == hf.tokenizer_name
    for name in ("eot_token_id", "prefix_token_id", "max_length", "max_gen_toks"):
        assert getattr(ours, name) == getattr(hf, name)


def test_a_shorter_context_can_be_asked_for(folder):
    assert open_ours(folder, max_length=32).max_length == 32
    with pytest.raises(ValueError, match="from 1 to 64, got 65"):
        open_ours(folder, max_length=65)


class Request:
    def __init__(self, context, **settings):
        self.args = (context, settings)


def test_settings_that_are_not_implemented_are_named(folder):
    model = open_ours(folder)
    with pytest.raises(ValueError, match="num_beams"):
        model.generate_until([Request("a", num_beams=4)], disable_tqdm=True)
    with pytest.raises(ValueError, match="256 new tokens, but the context holds 64"):
        model.generate_until([Request("a")], disable_tqdm=True)


def test_requests_of_other_settings_keep_their_order(folder):
    """Of the lengths of another test, so that nothing is compiled anew."""
    model = open_ours(folder, batch_size=3)
    requests = [
        Request(f"Question {i}: which nerve, please?", max_gen_toks=12, until=["eh"[i % 2]])
        for i in range(4)
    ]
    together = model.generate_until(requests, disable_tqdm=True)
    alone = [model.generate_until([request], disable_tqdm=True)[0] for request in requests]
    assert together == alone
    assert not any("eh"[i % 2] in text for i, text in enumerate(together))


@pytest.mark.slow
def test_answers_equal_the_harness_own_on_a_real_model(tmp_path):
    """SmolLM2-135M, exported in float32 and read by both."""
    path = find_embedded_model()
    settings, params = load_base(path, dtype="float32")
    ends = load_generation_config(path)
    save_huggingface(
        tmp_path / "smol", settings, params, load_tokenizer(path), generation_config=ends
    )
    manager = write_tasks(tmp_path, stops="\\\\n\\\\n")
    ours, _ = answers(open_ours(tmp_path / "smol"), manager)
    theirs, _ = answers(open_theirs(tmp_path / "smol", batch_size=2), manager)
    differences = [
        abs(mine[0] - hers[0])
        for first, second in zip(ours["local_choice"], theirs["local_choice"], strict=True)
        for (mine,), (hers,) in zip(first, second, strict=True)
    ]
    print(f"largest difference of {len(differences)} log-likelihoods: {max(differences):.2e}")
    check_equal(ours, theirs, atol=2e-3)


def test_the_day_of_a_dialogue_is_that_of_training(folder):
    ours = open_ours(folder)
    ours.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[-1].content }}"
    history = [{"role": "user", "content": "Cough?"}]
    assert ours.apply_chat_template(history) == "26 Jul 2024 Cough?"
    assert ours.apply_chat_template(history, add_generation_prompt=False) == "26 Jul 2024 Cough?"
