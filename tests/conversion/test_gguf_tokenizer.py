"""Tokenizers from GGUF metadata: equal to their originals, or refused."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from medcare_jax.conversion import ConversionError, find_embedded_model, load_tokenizer
from medcare_jax.conversion.embedded import EmbeddedModelError
from medcare_jax.conversion.gguf_tokenizer import _CUTS

TEXTS = [
    "Hello world, it's I'LL don't",
    "The patient's code is E11.9; 12345 mg, 2.5 ml",
    "霍乱弧菌引起的霍乱 A00.0 两个",
    "a  b   c\n\n\n d\t\te \r\n x ",
    " lead and trail ",
    "é e\u0301 😀 नमस्ते\u00a0x",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "x<|endoftext|>y<think> z",
    "",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """Vocabulary and merges of a small byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {"tokens": [*tokens, "<think>"], "merges": [" ".join(x) for x in model["merges"]]}


def write(
    path: pathlib.Path,
    trained: dict[str, Any],
    *,
    cut: str | None = "qwen2",
    model: str = "gpt2",
    add_bos: bool = False,
    eos: int = 2,
    kinds_cut: int = 0,
) -> None:
    """A GGUF file with a tokenizer and nothing else; without what `trained` lacks."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tokenizer_model(model)
    if cut is not None:
        writer.add_tokenizer_pre(cut)
    kinds = {name: gguf.TokenType.CONTROL for name in SPECIAL} | {
        "<think>": gguf.TokenType.USER_DEFINED
    }
    tokens = trained.get("tokens", [])
    types = [kinds.get(x, gguf.TokenType.NORMAL) for x in tokens[kinds_cut:]]
    for add, values in (
        (writer.add_token_list, tokens),
        (writer.add_token_types, types),
        (writer.add_token_merges, trained.get("merges", [])),
    ):
        if values:
            add(values)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.slow
def test_the_real_one_is_that_of_transformers() -> None:
    """Equal ids on all texts; spaces before a digit have a test of their own."""
    try:
        path = find_embedded_model()
    except EmbeddedModelError as error:
        pytest.skip(str(error))
    from transformers import AutoTokenizer

    ours = load_tokenizer(path)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        ids = ours(text).input_ids
        assert ids == theirs(text).input_ids, text
        assert ours.decode(ids) == text
    assert ours.chat_template == theirs.chat_template
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.decode(ours("<|im_start|>hi<|im_end|>").input_ids, skip_special_tokens=True) == "hi"
    # Digits are cut off first in this model, so the two spaces before one are one token. The
    # general rule that transformers falls back to would leave the second space to the digit.
    assert ours.convert_ids_to_tokens(ours("  2").input_ids) == ["ĠĠ", "2"]


@pytest.mark.parametrize("cut", ["qwen2", "llama-bpe", "gpt-2"])
def test_small_ones_are_those_of_transformers(
    trained: dict[str, Any], tmp_path: pathlib.Path, cut: str
) -> None:
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    write(tmp_path / "m.gguf", trained, cut=cut)
    ours = load_tokenizer(tmp_path / "m.gguf")
    architecture, fields, _ = get_gguf_tokenizer(str(tmp_path / "m.gguf"))
    theirs = convert_gguf_tokenizer(architecture, fields)[0]
    for text in TEXTS:
        if cut == "qwen2":  # theirs leaves out the composition that Qwen's own tokenizer does
            text = text.replace("e\u0301", "é")
        assert ours(text).input_ids == theirs.encode(text).ids, text


def test_qwen_composes_unicode(trained: dict[str, Any], tmp_path: pathlib.Path) -> None:
    write(tmp_path / "m.gguf", trained, cut="qwen2")
    tokenizer = load_tokenizer(tmp_path / "m.gguf")
    assert tokenizer("e\u0301").input_ids == tokenizer("é").input_ids


def test_special_tokens_and_template(trained: dict[str, Any], tmp_path: pathlib.Path) -> None:
    write(tmp_path / "m.gguf", trained)
    tokenizer = load_tokenizer(tmp_path / "m.gguf")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert len(tokenizer) == len(trained["tokens"])
    thought = trained["tokens"].index("<think>")
    assert tokenizer("<|im_start|><think>").input_ids == [1, thought]
    assert tokenizer.decode([1, thought], skip_special_tokens=True) == "<think>"
    turns = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "hi"


def test_begin_token_only_where_the_file_asks(
    trained: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    write(tmp_path / "m.gguf", trained, add_bos=True)
    tokenizer = load_tokenizer(tmp_path / "m.gguf")
    assert tokenizer("hi").input_ids[0] == 1
    assert tokenizer("hi", add_special_tokens=False).input_ids == tokenizer("hi").input_ids[1:]


@pytest.mark.parametrize(
    ("cut", "model"), [("deepseek-coder", "gpt2"), (None, "gpt2"), ("qwen2", "llama")]
)
def test_what_is_not_known_is_refused(
    trained: dict[str, Any], tmp_path: pathlib.Path, cut: str | None, model: str
) -> None:
    write(tmp_path / "m.gguf", trained, cut=cut, model=model)
    with pytest.raises(ConversionError, match=f"'{model}' with pre-tokenizer {cut!r}"):
        load_tokenizer(tmp_path / "m.gguf")


def test_a_token_listed_twice(trained: dict[str, Any], tmp_path: pathlib.Path) -> None:
    write(tmp_path / "m.gguf", trained | {"tokens": [*trained["tokens"], "a"]})
    with pytest.raises(ConversionError, match="1 tokens are listed twice"):
        load_tokenizer(tmp_path / "m.gguf")


@pytest.mark.parametrize("lost", ["tokens", "merges"])
def test_a_list_that_is_not_there(
    trained: dict[str, Any], tmp_path: pathlib.Path, lost: str
) -> None:
    write(tmp_path / "m.gguf", {name: trained[name] for name in trained if name != lost})
    with pytest.raises(ConversionError, match=rf"m\.gguf lacks tokenizer.ggml lists: .*{lost}"):
        load_tokenizer(tmp_path / "m.gguf")


@pytest.mark.parametrize("merge", ["a b c", "ab", "no such"])
def test_a_broken_merge(trained: dict[str, Any], tmp_path: pathlib.Path, merge: str) -> None:
    write(tmp_path / "m.gguf", trained | {"merges": [merge, *trained["merges"]]})
    with pytest.raises(ConversionError, match=r"m\.gguf: its tokenizer cannot be used"):
        load_tokenizer(tmp_path / "m.gguf")


def test_ids_and_types_that_do_not_fit_the_tokens(
    trained: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    write(tmp_path / "eos.gguf", trained, eos=99_999)
    with pytest.raises(ConversionError, match=r"eos\.gguf: .*eos_token_id is 99999, expected 0 to"):
        load_tokenizer(tmp_path / "eos.gguf")
    write(tmp_path / "types.gguf", trained, kinds_cut=3)
    with pytest.raises(ConversionError, match=r"types\.gguf: its tokenizer cannot be used"):
        load_tokenizer(tmp_path / "types.gguf")


def test_every_cut_keeps_the_text() -> None:
    for name, cut in _CUTS.items():
        for text in TEXTS:
            pieces = "".join(piece for piece, _ in cut.pre_tokenize_str(text))
            spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            assert pieces == "".join(x for x, _ in spelled.pre_tokenize_str(text)), name


def test_torch_is_not_needed(trained: dict[str, Any], tmp_path: pathlib.Path) -> None:
    write(tmp_path / "m.gguf", trained)
    code = (
        "import sys; from medcare_jax.conversion import load_tokenizer;"
        f"load_tokenizer({str(tmp_path / 'm.gguf')!r}); assert 'torch' not in sys.modules"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
