"""GGUF files: metadata to a config, quantised blocks to float32 tensors under Hugging Face names.

The tokenizer that such a file carries is built in `gguf_tokenizer`.
"""

import functools
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.quants import dequantize

from medcare_jax.conversion.tensors import ConversionError, Index, LazyTensor
from medcare_jax.models.families import UnsupportedModelError

# What is expanded at once, and how many rows go as one: see `_expand`.
_PART_BYTES = 4 * 2**20
_JOINED_ROWS = 8

ARCHITECTURES = ("llama", "qwen2", "qwen3")

# Name in the file -> name in Hugging Face's folder; `{layer}` rows of both count alike.
_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# Key in the file, after the architecture's name -> field of config.json.
_FIELDS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
# Keys that need no field of their own: read elsewhere here, or true of any tensor found.
_READ_ELSEWHERE = {
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
}
_TOKEN_IDS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What would be the file's `config.json`.

    Args:
      path: A GGUF file of one of the architectures llama, qwen2, qwen3.

    Returns:
      Fields under their Hugging Face names; `medcare_jax.models.families` reads them.

    Raises:
      FileNotFoundError: No such file.
      UnsupportedModelError: Another architecture, or a setting that is not implemented, by name.
      ConversionError: A broken file.
    """
    reader = open_file(path)
    try:
        return _config(reader, path)
    except (ConversionError, UnsupportedModelError):
        raise
    except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConversionError(
            f"{path}: a value of its metadata cannot be used ({type(error).__name__}: {error}); "
            "fetch the file again"
        ) from error


def _config(reader: GGUFReader, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The config of a parsed file."""
    metadata = {
        key: _value(field) for key, field in reader.fields.items() if "tokenizer." not in key
    }
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{path}: GGUF architecture {name!r} is not supported; supported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    if metadata.get("split.count", 1) > 1:
        raise UnsupportedModelError(f"{path} is one of several parts; join them (gguf-split)")
    keys = {
        key.removeprefix(f"{name}."): value
        for key, value in metadata.items()
        if key.startswith(f"{name}.")
    }
    shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
    if "token_embd.weight" not in shapes:
        raise ConversionError(f"{path} has no tensor token_embd.weight")
    if len(shapes["token_embd.weight"]) != 2:
        raise ConversionError(f"{path}: token_embd.weight is not a matrix")
    config = {"model_type": name} | _model_fields(keys, path=path)
    return config | {
        "vocab_size": int(shapes["token_embd.weight"][1]),
        "tie_word_embeddings": "output.weight" not in shapes,
        **_token_ids(reader),
    }


def read_tensors(path: str | os.PathLike[str]) -> dict[str, LazyTensor]:
    """The file's tensors under their Hugging Face names, expanded to float32 when read.

    Tensors of unknown name keep it, so that the check of names lists them.
    """
    config = read_config(path)
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    tensors = {}
    for tensor in open_file(path).tensors:
        name = huggingface_name(tensor.name)
        lazy = _lazy(tensor, path=pathlib.Path(path))
        projection = name.split(".")[-2] if name.count(".") > 1 else ""
        # Only Llama's converter interleaves the rotary halves of q and k.
        if config["model_type"] == "llama" and projection in heads:
            lazy = _rotary_halves(lazy, config[heads[projection]])
        tensors[name] = lazy
    return tensors


def huggingface_name(name: str) -> str:
    """A tensor's Hugging Face name, or its own if there is none.

    >>> huggingface_name("blk.3.attn_q.bias")
    'model.layers.3.self_attn.q_proj.bias'
    """
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _TENSORS:
        return name
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{_TENSORS[match[2]]}.{match[3]}"


def open_file(path: str | os.PathLike[str]) -> GGUFReader:
    """The parsed file; parsing a large vocabulary takes seconds, so the last file is remembered.

    Raises:
      FileNotFoundError: No such file.
      ConversionError: Not a whole GGUF file.
    """
    path = pathlib.Path(path).absolute()
    state = path.stat()
    return _open(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _open(path: pathlib.Path, size: int, modified: int) -> GGUFReader:
    """The parsed file, as it is at that size and time."""
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ConversionError(
            f"{path} ({size} bytes) is no whole GGUF file ({error}); fetch it again"
        ) from error


def _value(field: Any) -> Any:
    """A metadata value; float32 as the shortest decimal that gives it (1e-05, not 9.99...e-06)."""
    value = field.contents()
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _model_fields(keys: Mapping[str, Any], *, path: Any) -> dict[str, Any]:
    """Fields of the config, with every key either used or refused."""
    unknown = sorted(set(keys) - set(_FIELDS) - _READ_ELSEWHERE)
    if unknown:
        listed = ", ".join(f"{key} = {keys[key]!r}" for key in unknown)
        raise UnsupportedModelError(f"{path} sets what is not supported: {listed}")
    fields = {field: keys[key] for key, field in _FIELDS.items() if key in keys}
    if not {"hidden_size", "num_attention_heads"} <= fields.keys():
        raise ConversionError(f"{path} lacks embedding_length or attention.head_count")
    # Absent, says the format, means as many as query heads.
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    fields.setdefault("head_dim", fields["hidden_size"] // fields["num_attention_heads"])
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.get(key, fields["head_dim"]) != fields["head_dim"]:
            raise UnsupportedModelError(
                f"{path}: {key} = {keys[key]} differs from the head width {fields['head_dim']}"
            )
    kind = keys.get("rope.scaling.type", "none")
    if kind != "none":
        scaling = {"rope_type": kind, "factor": keys.get("rope.scaling.factor")}
        fields["rope_parameters"] = {"rope_theta": fields.get("rope_theta"), **scaling}
    return fields


def _token_ids(reader: GGUFReader) -> dict[str, int]:
    """The special ids that the tokenizer's part of the file names."""
    return {
        name: int(reader.fields[f"tokenizer.ggml.{key}"].contents())
        for key, name in _TOKEN_IDS.items()
        if f"tokenizer.ggml.{key}" in reader.fields
    }


def _lazy(tensor: ReaderTensor, *, path: pathlib.Path) -> LazyTensor:
    """A tensor expanded from its blocks when read; rows are independent of each other."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if not shape:
        raise ConversionError(f"{path}: {tensor.name} has no dimensions; fetch the file again")

    def read(index: Index) -> np.ndarray:
        rows, rest = index[0], index[1:]
        try:
            values = _expand(tensor.data[rows], tensor.tensor_type, shape[1:])
        except NotImplementedError as error:
            raise ConversionError(
                f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which the gguf "
                "package cannot expand; use another quantisation of the model"
            ) from error
        except ValueError as error:
            raise ConversionError(
                f"{path}: {tensor.name} does not fill blocks of {tensor.tensor_type.name} "
                f"({error}); fetch the file again"
            ) from error
        is_whole = all(part == slice(0, size) for part, size in zip(rest, shape[1:], strict=True))
        return values if is_whole else np.array(values[(slice(None), *rest)])

    return LazyTensor(shape, np.dtype(np.float32), read)


def _expand(data: np.ndarray, kind: GGMLQuantizationType, row: tuple[int, ...]) -> np.ndarray:
    """Rows of quantised blocks as float32, a few MiB at a time.

    The package expands 16 rows at once and joins all of them at the end. Parts that stay in the
    cache, of rows long enough that its loop does not count, take a seventh of the time.
    """
    values = np.empty((len(data), *row), np.float32)
    step = max(_JOINED_ROWS, _PART_BYTES * len(data) // max(values.nbytes, 1))
    for start in range(0, len(data), step - step % _JOINED_ROWS):
        part = data[start : start + step - step % _JOINED_ROWS]
        joined = _JOINED_ROWS if len(part) % _JOINED_ROWS == 0 else 1
        expanded = dequantize(part.reshape(len(part) // joined, -1), kind)
        values[start : start + len(part)] = expanded.reshape(len(part), *row)
    return values


def _rotary_halves(tensor: LazyTensor, heads: int) -> LazyTensor:
    """Rows of each head from (x0, y0, x1, y1, ...) back to (x0, x1, ..., y0, y1, ...).

    Reads the heads that the asked rows belong to, and no other.
    """
    width = tensor.shape[0] // heads
    order = np.arange(width).reshape(-1, 2).T.reshape(-1)

    def read(index: Index) -> np.ndarray:
        rows, rest = index[0], index[1:]
        first, last = rows.start // width, -(-rows.stop // width)
        block = tensor[(slice(first * width, last * width), *rest)]
        turned = block.reshape(last - first, width, *block.shape[1:])[:, order]
        turned = turned.reshape(block.shape)
        return turned[rows.start - first * width : rows.stop - first * width]

    return LazyTensor(tensor.shape, tensor.dtype, read)
