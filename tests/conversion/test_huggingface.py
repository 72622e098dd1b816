"""Base models in and out: byte for byte, on a mesh, and as transformers sees them."""

import dataclasses
import io
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medcare_jax import params as trees
from medcare_jax.conversion import (
    ConversionError,
    load_base,
    load_generation_config,
    load_tokenizer,
    save_huggingface,
)
from medcare_jax.conversion.bases import byte_tokenizer
from medcare_jax.conversion.safetensors import read_folder
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import DecoderSettings, UnsupportedModelError
from tests.conversion.conftest import MakeFolder
from tests.helpers import FLOAT32, TINY, TINY_ADAPTERS, outputs_of, random_inputs

HALF = ml_dtypes.bfloat16


def check_same_tensors(folder: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    found = read_folder(folder)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        values = found[name][...]
        assert (values.dtype, values.tobytes()) == (tensor.dtype, tensor.tobytes()), name


@st.composite
def architectures(draw: st.DrawFn) -> DecoderSettings:
    """Any small decoder in which no two sizes are equal."""
    family = draw(st.sampled_from(["qwen2", "qwen3", "llama"]))
    head_dim = 2 * draw(st.integers(1, 3))
    kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    taken = {head_dim, kv_heads * head_dim, groups * kv_heads * head_dim}
    others = st.integers(7, 40).filter(lambda size: size not in taken)
    hidden, ffn, vocab = draw(st.lists(others, min_size=3, max_size=3, unique=True))
    return dataclasses.replace(
        TINY[family],
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=draw(st.integers(1, 5)),
        num_heads=kv_heads * groups,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=draw(st.booleans()),
    )


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    architecture=architectures(),
    dtype=st.sampled_from([np.float32, np.float16, HALF]),
    shard_bytes=st.sampled_from([1, 3000, 1 << 30]),
)
def test_round_trip_of_any_architecture_is_byte_identical(
    make_folder: MakeFolder,
    tmp_path_factory: pytest.TempPathFactory,
    architecture: DecoderSettings,
    dtype: Any,
    shard_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("model")
    tensors = make_folder(folder / "base", architecture, dtype, shard_bytes=shard_bytes)
    found, params = load_base(folder / "base")
    assert found == architecture
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {np.dtype(dtype).name}
    save_huggingface(folder / "back", found, params, shard_bytes=shard_bytes)
    check_same_tensors(folder / "back", tensors)
    assert load_base(folder / "back")[0] == architecture


@pytest.mark.torch
@pytest.mark.parametrize("family", TINY)
def test_transformers_gives_the_same_logits_before_and_after(
    make_folder: MakeFolder, tmp_path: pathlib.Path, family: str
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    make_folder(tmp_path / "base", TINY[family], shard_bytes=5000)
    decoder_settings, params = load_base(tmp_path / "base")
    save_huggingface(tmp_path / "back", decoder_settings, params, shard_bytes=7000)
    inputs = random_inputs()
    decoder = Decoder(decoder_settings, TINY_ADAPTERS, NO_ADAPTERS, FLOAT32)
    ours = outputs_of(decoder, params, inputs).logits
    for name in ("base", "back"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        with torch.no_grad():
            theirs = model(torch.tensor(np.asarray(inputs.tokens, np.int64))).logits
        assert theirs.dtype == torch.float32
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-4)


def test_leaves_go_straight_to_their_shards(
    make_folder: MakeFolder, tmp_path: pathlib.Path
) -> None:
    make_folder(tmp_path / "base", TINY["qwen2"])
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = {
        "model/layers/mlp/up_proj/kernel": jax.sharding.PartitionSpec(None, "x", "y"),
        "model/embed_tokens/embedding": jax.sharding.PartitionSpec("x"),
    }
    asked = {}

    def sharding_for(path: str, shape: tuple[int, ...]) -> jax.sharding.Sharding | None:
        asked[path] = shape
        return jax.sharding.NamedSharding(mesh, spec[path]) if path in spec else None

    sharded = trees.flatten(load_base(tmp_path / "base", sharding_for=sharding_for)[1])
    whole = trees.flatten(load_base(tmp_path / "base")[1])
    assert asked == {path: leaf.shape for path, leaf in whole.items()}
    for path, leaf in whole.items():
        np.testing.assert_array_equal(sharded[path], leaf)
    kernel = sharded["model/layers/mlp/up_proj/kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 10, 9)


def test_cast_on_the_way_in_and_out(make_folder: MakeFolder, tmp_path: pathlib.Path) -> None:
    tensors = make_folder(tmp_path / "base", TINY["llama"])
    narrow, params = load_base(tmp_path / "base", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    _, wide = load_base(tmp_path / "base")
    save_huggingface(tmp_path / "back", narrow, wide, dtype=jnp.bfloat16)
    check_same_tensors(tmp_path / "back", {n: t.astype(HALF) for n, t in tensors.items()})
    assert json.loads((tmp_path / "back/config.json").read_text())["torch_dtype"] == "bfloat16"
    for path, leaf in trees.flatten(load_base(tmp_path / "back")[1]).items():
        np.testing.assert_array_equal(leaf, trees.flatten(params)[path])
    with pytest.raises(ConversionError, match="dtype int32 cannot hold weights"):
        load_base(tmp_path / "base", dtype="int32")


def test_a_dtype_that_no_export_has_is_refused(
    make_folder: MakeFolder, tmp_path: pathlib.Path
) -> None:
    make_folder(tmp_path / "base", TINY["llama"])
    settings, params = load_base(tmp_path / "base")
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    with pytest.raises(ConversionError, match=r"weights are float64; expected .*--dtype"):
        save_huggingface(tmp_path / "out", settings, params)
    assert not (tmp_path / "out").exists()
    save_huggingface(tmp_path / "out", settings, params, dtype=np.float32)


def test_everything_travels_with_the_weights(
    make_folder: MakeFolder, tmp_path: pathlib.Path
) -> None:
    """More rows than tokens is padding: it stays, there and back."""
    roomy = dataclasses.replace(TINY["qwen2"], vocab_size=300)
    make_folder(tmp_path / "base", roomy)
    tokenizer = byte_tokenizer()
    assert len(tokenizer) < 300
    ends = {"eos_token_id": tokenizer.eos_token_id, "max_new_tokens": 9}
    for name in ("one", "two"):
        save_huggingface(
            tmp_path / name,
            *load_base(tmp_path / "base"),
            tokenizer,
            card="# A model\n",
            generation_config=ends,
        )
    back = load_tokenizer(tmp_path / "one")
    text = "<|im_start|>user\n两 é <|im_end|>"
    assert back(text).input_ids == tokenizer(text).input_ids
    assert back.chat_template == tokenizer.chat_template
    assert load_generation_config(tmp_path / "one") == ends
    assert (tmp_path / "one/README.md").read_text() == "# A model\n"
    assert load_base(tmp_path / "one")[0].vocab_size == 300
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_generation_ids_of_a_folder_without_the_file(
    make_folder: MakeFolder, tmp_path: pathlib.Path
) -> None:
    make_folder(tmp_path, TINY["qwen2"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [3, 4]}))
    assert load_generation_config(tmp_path) == {"eos_token_id": [3, 4]}


@pytest.mark.parametrize("own", [{}, {"eos_token_id": None}, {"bos_token_id": 7}])
def test_generation_ids_that_the_file_leaves_to_the_config_reach_an_export(
    make_folder: MakeFolder, tmp_path: pathlib.Path, own: dict[str, int | None]
) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    make_folder(base, TINY["qwen2"])
    config = json.loads((base / "config.json").read_text()) | {"eos_token_id": 3, "bos_token_id": 5}
    (base / "config.json").write_text(json.dumps(config))
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.7, **own}))
    found = load_generation_config(base)
    assert found == {"temperature": 0.7, "bos_token_id": 5, **own, "eos_token_id": 3}
    save_huggingface(out, *load_base(base), generation_config=found)
    written = json.loads((out / "config.json").read_text())
    assert (written["eos_token_id"], written["bos_token_id"]) == (3, found["bos_token_id"])


def test_a_tokenizer_larger_than_the_embedding(
    make_folder: MakeFolder, tmp_path: pathlib.Path
) -> None:
    make_folder(tmp_path / "base", TINY["qwen2"])
    with pytest.raises(ConversionError, match="259 tokens, the embedding 98 rows"):
        save_huggingface(tmp_path / "back", *load_base(tmp_path / "base"), byte_tokenizer())
    assert not (tmp_path / "back").exists()


def test_adapters_are_not_dropped_silently(make_folder: MakeFolder, tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "base", TINY["qwen2"])
    decoder_settings, params = load_base(tmp_path / "base")
    params["model"]["layers"]["mlp"]["up_proj"]["knowledge"] = {"lora_a": jnp.ones((3, 20, 2))}
    with pytest.raises(ConversionError, match=r"\+ model/layers/mlp/up_proj/knowledge/lora_a"):
        save_huggingface(tmp_path / "back", decoder_settings, params)


def test_an_existing_target_is_refused(make_folder: MakeFolder, tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "base", TINY["qwen2"])
    with pytest.raises(ConversionError, match="exists"):
        save_huggingface(tmp_path / "base", *load_base(tmp_path / "base"))


class TestExtras:
    """Tensors that repeat what is known are tolerated; all others are not."""

    def test_rotary_tables(self, make_folder: MakeFolder, tmp_path: pathlib.Path) -> None:
        name = "model.layers.1.self_attn.rotary_emb.inv_freq"
        make_folder(tmp_path, TINY["llama"], **{name: np.zeros(3, np.float32)})
        load_base(tmp_path)

    @pytest.mark.parametrize("equal", [True, False])
    def test_tied_output_matrix(
        self, make_folder: MakeFolder, tmp_path: pathlib.Path, equal: bool
    ) -> None:
        tied = dataclasses.replace(TINY["llama"], tie_word_embeddings=True)
        tensors = make_folder(tmp_path, tied)
        output = tensors["model.embed_tokens.weight"] + (0 if equal else 1)
        make_folder(tmp_path, tied, **{"lm_head.weight": output})
        if equal:
            assert "lm_head" not in load_base(tmp_path)[1]
            return
        with pytest.raises(ConversionError, match=r"lm_head\.weight differs"):
            load_base(tmp_path)

    def test_anything_else(self, make_folder: MakeFolder, tmp_path: pathlib.Path) -> None:
        name = "model.layers.0.self_attn.q_proj.bias"
        make_folder(tmp_path, TINY["llama"], **{name: np.zeros(24, np.float32)})
        with pytest.raises(ConversionError, match=r"1 unexpected[^\n]*\n  \+ " + name):
            load_base(tmp_path)

    def test_a_missing_tensor(self, make_folder: MakeFolder, tmp_path: pathlib.Path) -> None:
        name = "model.layers.2.mlp.down_proj.weight"
        make_folder(tmp_path, TINY["qwen3"], without=(name,))
        with pytest.raises(ConversionError, match=rf"1 missing[^\n]*\n  - {name} \[20, 36\]"):
            load_base(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"num_hidden_layers": 200000', "num_hidden_layers is 200000, .* there are 39 in all"),
        ('"max_position_embeddings": "256"', "max_position_embeddings = '256', expected a whole"),
        ('"rms_norm_eps": NaN', "NaN is not a JSON value"),
        ('"head_dim": 6, "head_dim": 4', "lists head_dim twice"),
    ],
)
def test_a_config_that_cannot_be_true_is_refused_with_its_name(
    make_folder: MakeFolder, tmp_path: pathlib.Path, text: str, message: str
) -> None:
    make_folder(tmp_path, TINY["qwen2"])
    name = text.split('"')[1]
    fields = json.loads((tmp_path / "config.json").read_text())
    others = json.dumps({key: value for key, value in fields.items() if key != name})
    (tmp_path / "config.json").write_text(f"{others[:-1]}, {text}}}")
    with pytest.raises(ConversionError, match=f"{tmp_path}.*{message}"):
        load_base(tmp_path)


class TestDamagedTokenizers:
    """Refused with the folder's name, whatever the libraries make of them."""

    @pytest.fixture
    def folder(self, tmp_path: pathlib.Path) -> pathlib.Path:
        byte_tokenizer().save_pretrained(tmp_path)
        assert len(load_tokenizer(tmp_path)) == 259
        return tmp_path

    @pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
    @pytest.mark.parametrize("end", [0, 20, -20])
    def test_cut_off(self, folder: pathlib.Path, name: str, end: int) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:end])
        with pytest.raises(ConversionError, match=f"{folder}: its tokenizer cannot be read"):
            load_tokenizer(folder)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("tokenizer.json", {}),
            ("tokenizer.json", []),
            ("tokenizer_config.json", []),
            ("tokenizer_config.json", {"eos_token": 5}),
        ],
    )
    def test_other_values(self, folder: pathlib.Path, name: str, content: Any) -> None:
        if content:
            content = json.loads((folder / name).read_text()) | content
        (folder / name).write_text(json.dumps(content))
        with pytest.raises(ConversionError, match=f"{folder}: its tokenizer cannot be read"):
            load_tokenizer(folder)

    def test_code_of_its_own_is_not_run_though_somebody_would_agree(
        self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("builtins.input", lambda *_: "y")
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
        own = {"AutoTokenizer": ["own.Own", "own.Own"], "AutoConfig": "own.Own"}
        for name in ("tokenizer_config.json", "config.json"):
            (folder / name).write_text(
                json.dumps({"auto_map": own, "tokenizer_class": "Own", "model_type": "own"})
            )
        (folder / "own.py").write_text(
            f"import pathlib\npathlib.Path({str(folder)!r}, 'ran').touch()\nOwn = None\n"
        )
        with pytest.raises(ConversionError, match="code of its own is not supported"):
            load_tokenizer(folder)
        assert not (folder / "ran").exists()


class TestBadPaths:
    """What is not there or not a model."""

    def test_nothing(self, tmp_path: pathlib.Path) -> None:
        for load in (load_base, load_tokenizer, load_generation_config):
            with pytest.raises(FileNotFoundError, match="is not there"):
                load(tmp_path / "nothing")

    def test_an_empty_folder(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"config\.json"):
            load_base(tmp_path)
        with pytest.raises(FileNotFoundError, match="no tokenizer"):
            load_tokenizer(tmp_path)

    def test_a_file_that_is_no_gguf(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "model.bin").write_bytes(b"x")
        with pytest.raises(ConversionError, match=r"expected a model folder or a \.gguf"):
            load_base(tmp_path / "model.bin")

    @pytest.mark.parametrize("text", ["{", "[1]"])
    def test_a_broken_config(self, tmp_path: pathlib.Path, text: str) -> None:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConversionError, match="not"):
            load_base(tmp_path)

    def test_weights_without_safetensors(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        with pytest.raises(UnsupportedModelError, match="gpt2"):
            load_base(tmp_path)


def test_the_reference_library_agrees_on_golden_weights(
    shared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    source = shared / "golden" / "base"
    save_huggingface(tmp_path / "back", *load_base(source), shard_bytes=100_000)
    check_same_tensors(tmp_path / "back", safetensors.numpy.load_file(source / "model.safetensors"))
