"""The tokenizer of a GGUF file, built without torch.

Such a file has the vocabulary, merges and special ids but only the *name* of how text is cut
before merging. The cuts of the supported names are written out here; the others are refused,
because a tokenizer that is nearly right trains a model on tokens it never saw.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import ByteLevel, TemplateProcessing

from medcare_jax.conversion.gguf import open_file
from medcare_jax.conversion.tensors import ConversionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WORDS_THEN_NUMBERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _cut(digits: str) -> pre_tokenizers.PreTokenizer:
    """Words, runs of so many digits, punctuation and spaces, each spelled in bytes."""
    pattern = Regex(_WORDS_THEN_NUMBERS.format(digits=digits))
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_GPT2_CUT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_QWEN2_CUT = _cut("")
_LLAMA3_CUT = _cut("{1,3}")
_CUTS: dict[str, pre_tokenizers.PreTokenizer] = {
    "gpt-2": _GPT2_CUT,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2_CUT]),
    "qwen2": _QWEN2_CUT,
    "deepseek-r1-qwen": _QWEN2_CUT,
    "llama-bpe": _LLAMA3_CUT,
}
_COMPOSES_UNICODE = ("qwen2", "deepseek-r1-qwen")
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def load_gguf_tokenizer(path: str | os.PathLike[str]) -> "PreTrainedTokenizerFast":
    """The file's tokenizer with its special tokens and chat template.

    Args:
      path: A GGUF file whose tokenizer is a byte-level BPE (model `gpt2`).

    Raises:
      FileNotFoundError: No such file.
      ConversionError: Another kind of tokenizer or cut, by name; no tokenizer at all; damage.
    """
    metadata = {
        key.removeprefix("tokenizer.").removeprefix("ggml."): field.contents()
        for key, field in open_file(path).fields.items()
        if key.startswith("tokenizer.")
    }
    _check(metadata, path=path)
    try:
        return _build(metadata)
    except Exception as error:  # the library raises whatever broken merges make it stumble over
        raise ConversionError(
            f"{path}: its tokenizer cannot be used ({type(error).__name__}: {error}); fetch the "
            "file again, or take the tokenizer of the model's Hugging Face folder"
        ) from error


def _build(metadata: Mapping[str, Any]) -> "PreTrainedTokenizerFast":
    """The tokenizer that the file's metadata describes."""
    from transformers import PreTrainedTokenizerFast

    special = {
        f"{name}_token": _token(metadata, f"{key}_token_id")
        for name, key in _SPECIAL.items()
        if metadata.get(f"{key}_token_id") is not None
    }
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=_backend(metadata, bos=special.get("bos_token")),
        chat_template=metadata.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )
    return tokenizer


def _token(metadata: Mapping[str, Any], key: str) -> str:
    """The token that a special id stands for."""
    tokens, number = metadata["tokens"], metadata[key]
    if not 0 <= number < len(tokens):
        raise ValueError(f"{key} is {number}, expected 0 to {len(tokens) - 1}")
    return str(tokens[number])


def _check(metadata: Mapping[str, Any], *, path: Any) -> None:
    """Raises unless this is a byte-level BPE with a known cut, and whole."""
    model, cut = metadata.get("model"), metadata.get("pre")
    if model != "gpt2" or cut not in _CUTS:
        raise ConversionError(
            f"{path}: tokenizer model {model!r} with pre-tokenizer {cut!r} is not supported; "
            f"supported is 'gpt2' with {', '.join(_CUTS)}. Take the tokenizer of the model's "
            "Hugging Face folder instead"
        )
    lists = ("tokens", "token_type", "merges")
    if missing := [name for name in lists if not isinstance(metadata.get(name), list)]:
        raise ConversionError(
            f"{path} lacks tokenizer.ggml lists: {', '.join(missing)}; fetch the file again, or "
            "take the tokenizer of the model's Hugging Face folder"
        )
    tokens = metadata["tokens"]
    if len(set(tokens)) < len(tokens):
        raise ConversionError(f"{path}: {len(tokens) - len(set(tokens))} tokens are listed twice")


def _backend(metadata: Mapping[str, Any], *, bos: str | None) -> Tokenizer:
    """The tokenizer proper."""
    tokens = metadata["tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in metadata["merges"]]
    cut = metadata["pre"]
    # Llama 3 takes a word that is in the vocabulary whole, even where merges do not lead to it.
    backend = Tokenizer(BPE(vocabulary, merges, ignore_merges=cut == "llama-bpe"))
    if cut in _COMPOSES_UNICODE:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _CUTS[cut]
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = ByteLevel(trim_offsets=False)
    if metadata.get("add_bos_token") and bos is not None:
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, vocabulary[bos])],
        )
    for token, kind in zip(tokens, metadata["token_type"], strict=True):
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            added = AddedToken(token, normalized=False, special=kind == TokenType.CONTROL)
            (backend.add_special_tokens if added.special else backend.add_tokens)([added])
    return backend
