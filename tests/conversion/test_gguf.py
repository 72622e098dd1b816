"""GGUF bases: made by the released writer, and one real model against transformers."""

import dataclasses
import pathlib
from typing import Any

import gguf
import jax
import numpy as np
import pytest

from medcare_jax import params as trees
from medcare_jax.conversion import (
    ConversionError,
    find_embedded_model,
    load_base,
    load_generation_config,
    load_tokenizer,
    save_huggingface,
)
from medcare_jax.conversion.embedded import EmbeddedModelError
from medcare_jax.conversion.gguf import huggingface_name, read_config, read_tensors
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import DecoderSettings, UnsupportedModelError
from tests.conversion.conftest import MakeFolder
from tests.helpers import FLOAT32, TINY, TINY_ADAPTERS, Inputs, outputs_of

# Widths that quantised blocks of 32 divide; still no two equal.
WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "rope_scaling": None}


def wide(family: str, **changes: Any) -> DecoderSettings:
    return dataclasses.replace(TINY[family], **(WIDE | changes))


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """What Llama's converter does to q and k: (x0, x1, ..., y0, y1, ...) to (x0, y0, x1, ...)."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: pathlib.Path,
    settings: DecoderSettings,
    tensors: dict[str, np.ndarray],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    **keys: Any,
) -> None:
    """A GGUF file as the released tools lay it out."""
    architecture = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}.get(
        settings.family, gguf.MODEL_ARCH.QWEN3
    )
    writer = gguf.GGUFWriter(path, settings.family)
    writer.add_block_count(settings.num_layers)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_heads)
    writer.add_head_count_kv(settings.num_kv_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_freq_base(settings.rope_theta)
    writer.add_key_length(settings.head_dim)
    writer.add_value_length(settings.head_dim)
    for key, value in keys.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key.replace("__", "."), value)
    names = gguf.get_tensor_name_map(architecture, settings.num_layers)
    for name, tensor in tensors.items():
        values = tensor
        if settings.family == "llama" and ".q_proj." in name:
            values = interleaved(tensor, settings.num_heads)
        if settings.family == "llama" and ".k_proj." in name:
            values = interleaved(tensor, settings.num_kv_heads)
        used = kind if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(
            names.get_name(name, (".weight", ".bias")) or name,
            gguf.quants.quantize(values.astype(np.float32), used),
            raw_dtype=used,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def real_model() -> pathlib.Path:
    """SmolLM2-135M-Instruct, where its package is installed."""
    try:
        return find_embedded_model()
    except EmbeddedModelError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", TINY)
def test_equal_to_the_folder_that_it_was_made_of(
    make_folder: MakeFolder, tmp_path: pathlib.Path, family: str, tied: bool
) -> None:
    settings = wide(family, tie_word_embeddings=tied)
    write_gguf(tmp_path / "m.gguf", settings, make_folder(tmp_path, settings))
    found, params = load_base(tmp_path / "m.gguf")
    expected_settings, expected = load_base(tmp_path)
    assert found == expected_settings == settings
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for path, leaf in trees.flatten(expected).items():
        np.testing.assert_array_equal(trees.flatten(params)[path], leaf, err_msg=path)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantised_blocks_are_expanded(
    make_folder: MakeFolder, tmp_path: pathlib.Path, kind: str
) -> None:
    settings = wide("qwen2")
    tensors = make_folder(tmp_path, settings)
    used = gguf.GGMLQuantizationType[kind]
    write_gguf(tmp_path / "m.gguf", settings, tensors, used)
    found = read_tensors(tmp_path / "m.gguf")
    name = "model.layers.1.mlp.down_proj.weight"
    exact = gguf.quants.dequantize(gguf.quants.quantize(tensors[name], used), used)
    np.testing.assert_array_equal(found[name][...], exact)
    np.testing.assert_array_equal(found[name][3:9, 5:70], exact[3:9, 5:70])
    assert 0 < np.abs(exact - tensors[name]).max() < 0.2


def test_key_value_heads_that_are_not_named_are_as_many_as_heads(
    make_folder: MakeFolder, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = wide("llama", num_kv_heads=TINY["llama"].num_heads)
    tensors = make_folder(tmp_path, settings)
    monkeypatch.setattr(gguf.GGUFWriter, "add_head_count_kv", lambda writer, count: None)
    write_gguf(tmp_path / "m.gguf", settings, tensors)
    assert load_base(tmp_path / "m.gguf")[0] == settings
    name = "model.layers.0.self_attn.k_proj.weight"
    np.testing.assert_array_equal(read_tensors(tmp_path / "m.gguf")[name][...], tensors[name])


def test_a_block_of_permuted_rows(make_folder: MakeFolder, tmp_path: pathlib.Path) -> None:
    settings = wide("llama")
    tensors = make_folder(tmp_path, settings)
    write_gguf(tmp_path / "m.gguf", settings, tensors)
    name = "model.layers.0.self_attn.k_proj.weight"
    block = read_tensors(tmp_path / "m.gguf")[name][5:20, 3:11]
    np.testing.assert_array_equal(block, tensors[name][5:20, 3:11])


def test_numbers_are_those_that_were_meant(tmp_path: pathlib.Path) -> None:
    """1e-6 is no float32; its nearest one must not become 9.99999997e-07 in a config."""
    settings = wide("qwen2")
    write_gguf(tmp_path / "m.gguf", settings, {"model.embed_tokens.weight": np.zeros((98, 64))})
    assert read_config(tmp_path / "m.gguf")["rms_norm_eps"] == 1e-6


def test_linear_rope_scaling_is_read(make_folder: MakeFolder, tmp_path: pathlib.Path) -> None:
    settings = wide("qwen3", rope_scaling=TINY["qwen3"].rope_scaling)
    tensors = make_folder(tmp_path, settings)
    keys = {"qwen3__rope__scaling__type": "linear", "qwen3__rope__scaling__factor": 3}
    write_gguf(tmp_path / "m.gguf", settings, tensors, **keys)
    scaling = load_base(tmp_path / "m.gguf")[0].rope_scaling
    assert scaling is not None
    assert (scaling.kind, scaling.factor) == ("linear", 3.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"llama__attention__sliding_window": 8}, "attention.sliding_window = 8"),
        ({"llama__expert_count": 4}, "expert_count = 4"),
        ({"llama__rope__scaling__type": "yarn"}, "rope scaling 'yarn'"),
        ({"llama__rope__dimension_count": 8}, "rope.dimension_count = 8 differs"),
        ({"split__count": 2}, "one of several parts"),
    ],
)
def test_settings_that_are_refused(
    tmp_path: pathlib.Path, keys: dict[str, Any], message: str
) -> None:
    tensors = {"model.embed_tokens.weight": np.zeros((98, 64))}
    write_gguf(tmp_path / "m.gguf", wide("llama"), tensors, **keys)
    with pytest.raises(UnsupportedModelError, match=message):
        load_base(tmp_path / "m.gguf")


def test_another_architecture(tmp_path: pathlib.Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match="'gpt2' is not supported; supported are llama"):
        load_base(tmp_path / "m.gguf")


def test_unknown_tensors_are_listed(make_folder: MakeFolder, tmp_path: pathlib.Path) -> None:
    settings = wide("llama")
    tensors = make_folder(tmp_path, settings) | {"rope_freqs.weight": np.ones(8, np.float32)}
    write_gguf(tmp_path / "m.gguf", settings, tensors)
    with pytest.raises(ConversionError, match=r"1 unexpected[^\n]*\n  \+ rope_freqs\.weight"):
        load_base(tmp_path / "m.gguf")


@pytest.mark.parametrize("kept", [0, 3, 100, 2000, 60_000])
def test_truncated_files(make_folder: MakeFolder, tmp_path: pathlib.Path, kept: int) -> None:
    settings = wide("qwen2")
    write_gguf(tmp_path / "m.gguf", settings, make_folder(tmp_path, settings))
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:kept])
    with pytest.raises(ConversionError, match="no whole GGUF file"):
        load_base(tmp_path / "cut.gguf")


def test_names_outside_the_table_stay() -> None:
    assert huggingface_name("blk.0.attn_sinks.weight") == "blk.0.attn_sinks.weight"
    assert huggingface_name("output.weight") == "lm_head.weight"


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_real_model_gives_the_logits_of_transformers(
    real_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """30 layers in float32, loaded by transformers from the same file and from our export of it."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings, params = load_base(real_model)
    tokenizer = load_tokenizer(real_model)
    turns = [{"role": "user", "content": "Which ICD-10 code has cholera? 霍乱"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    tokens = np.asarray([tokenizer(text).input_ids], np.int32)
    inputs = Inputs(tokens, np.arange(tokens.shape[1], dtype=np.int32)[None], np.ones_like(tokens))
    ours = outputs_of(Decoder(settings, TINY_ADAPTERS, NO_ADAPTERS, FLOAT32), params, inputs)
    save_huggingface(
        tmp_path / "export",
        settings,
        params,
        tokenizer,
        generation_config=load_generation_config(real_model),
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "export")(text).input_ids == tokens[0].tolist()
    sources = [(real_model.parent, {"gguf_file": real_model.name}), (tmp_path / "export", {})]
    for folder, options in sources:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        with torch.no_grad():
            theirs = model(torch.tensor(tokens, dtype=torch.int64)).logits.numpy()
        np.testing.assert_allclose(ours.logits, theirs, rtol=0, atol=1e-4)
