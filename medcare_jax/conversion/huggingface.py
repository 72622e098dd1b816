"""Base models in and out: Hugging Face folders, and GGUF files on the way in."""

import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from medcare_jax import params as trees
from medcare_jax.conversion import gguf, rules, safetensors
from medcare_jax.conversion.atomic import Finish, new_folder
from medcare_jax.conversion.gguf_tokenizer import load_gguf_tokenizer
from medcare_jax.conversion.metadata import naming, read_object, write_object
from medcare_jax.conversion.tensors import (
    DTYPES,
    ConversionError,
    LazyTensor,
    cast,
    contiguous,
    from_array,
)
from medcare_jax.models.families import (
    DecoderSettings,
    decoder_settings,
    huggingface_config,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ShardingFor = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]

# What files carry although it says nothing that the config does not.
_HARMLESS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_COMPARE_ROWS = 4096


def load_base(
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    sharding_for: ShardingFor | None = None,
) -> tuple[DecoderSettings, trees.Tree]:
    """A base model's settings and parameters.

    Args:
      path: A Hugging Face folder (one or many safetensors files) or a `.gguf` file.
      dtype: float32, bfloat16 or float16; by default that of the file (a GGUF's quantised blocks
        are float32 once expanded).
      sharding_for: From a leaf's path and shape to where it shall lie; each device then reads its
        own slices only. By default, or where it returns None, the default device.

    Returns:
      The settings and the nested parameters, layers stacked: `[l, ...]`.

    Raises:
      FileNotFoundError: No such folder or file, or no safetensors file in it.
      UnsupportedModelError: An architecture or field value that is not implemented.
      ConversionError: Tensors missing, unexpected or of another shape; broken files.
    """
    settings, tensors = open_base(path)
    target = checked_dtype(dtype)
    leaves = rules.to_leaves(
        rules.decoder_rules(settings),
        # Cast before layers are stacked, so that what is cast at once is small.
        {name: cast(tensor, target, name=name) for name, tensor in tensors.items()},
        sizes=rules.letter_sizes(settings),
        num_layers=settings.num_layers,
        what=str(path),
    )
    placed = {
        leaf: _place(
            tensor,
            sharding_for(leaf, tensor.shape) if sharding_for else None,
        )
        for leaf, tensor in leaves.items()
    }
    return settings, trees.unflatten(placed)


def open_base(path: str | os.PathLike[str]) -> tuple[DecoderSettings, dict[str, LazyTensor]]:
    """A base model's settings and lazy tensors under their Hugging Face names.

    Nothing but headers is read, so this is where a conversion that streams begins.
    """
    path = pathlib.Path(path)
    if _is_gguf(path):
        settings, tensors = _settings(gguf.read_config(path), path), gguf.read_tensors(path)
    else:
        settings = _settings(read_object(path / "config.json"), path / "config.json")
        tensors = safetensors.read_folder(path)
    _check_layers(settings, tensors, what=str(path))
    return settings, _without_harmless(tensors, settings, what=str(path))


def _settings(config: Mapping[str, Any], path: pathlib.Path) -> DecoderSettings:
    """What a file's config says; whatever is wrong with it carries the file's name."""
    with naming(path):
        return decoder_settings(config)


def load_tokenizer(path: str | os.PathLike[str]) -> "PreTrainedTokenizerFast":
    """The tokenizer, with its chat template if it has one, of a folder or a `.gguf` file.

    Code that comes with a folder is never run, nor does anything ask whether it may be.

    Raises:
      FileNotFoundError: No such folder or file, or no tokenizer in it.
      ConversionError: A tokenizer of a kind that is not implemented, or that needs code of its own;
        damaged files.
    """
    path = pathlib.Path(path)
    if _is_gguf(path):
        return load_gguf_tokenizer(path)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((path / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(f"{path} holds no tokenizer (tokenizer.json, or vocab.json)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # damaged files make the libraries stumble over anything
        raise ConversionError(
            f"{path}: its tokenizer cannot be read ({_first_line(error)}). Fetch its "
            "tokenizer*.json, vocab.json, merges.txt and config.json again; a tokenizer with code "
            "of its own is not supported"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConversionError(
            f"{path} needs {type(tokenizer).__name__}, which has no tokenizer.json"
        )
    return tokenizer


def _first_line(error: Exception, most: int = 200) -> str:
    """Kind and beginning of what a library says, which may go on for pages."""
    return f"{type(error).__name__}: {error}".split("\n")[0][:most]


def load_generation_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The base's generation settings: its `generation_config.json`, and token ids of its config.

    The config's ids count where that file is missing or names none.
    """
    path = pathlib.Path(path)
    config = gguf.read_config(path) if _is_gguf(path) else read_object(path / "config.json")
    known = {name: config[name] for name in _TOKEN_IDS if config.get(name) is not None}
    if _is_gguf(path) or not (path / "generation_config.json").exists():
        return known
    found = read_object(path / "generation_config.json")
    return found | {name: known[name] for name in known if found.get(name) is None}


def save_huggingface(
    path: str | os.PathLike[str],
    settings: DecoderSettings,
    params: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerFast | None" = None,
    *,
    dtype: DTypeLike | None = None,
    shard_bytes: int = 5 * 2**30,
    card: str = "",
    generation_config: Mapping[str, Any] | None = None,
    finish: Finish | None = None,
) -> None:
    """Writes a folder that `transformers` and vLLM load; it appears whole or not at all.

    Args:
      path: The folder; must not exist.
      settings: The model's settings.
      params: Its parameters without adapters (`fold` them first); arrays or lazy tensors.
      tokenizer: Written beside the weights, chat template included.
      dtype: float32, bfloat16 or float16; by default that of the parameters.
      shard_bytes: Most bytes of values in one safetensors file.
      card: Markdown of the model card (`README.md`).
      generation_config: Content of `generation_config.json`, as `load_generation_config` gives.
      finish: Called before the folder takes its name; see `atomic.Finish`. It may add files.

    Raises:
      ConversionError: The target exists; leaves missing, unexpected, of another shape or of a dtype
        that is none of those; the tokenizer has more tokens than the embedding has rows.
    """
    check_vocabulary(settings, tokenizer)
    tensors = _cast_tensors(settings, params, dtype)
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    if strangers := sorted(dtypes - set(DTYPES)):
        raise ConversionError(
            f"the weights are {', '.join(strangers)}; expected one of {', '.join(DTYPES)}. Choose "
            "one (--dtype)"
        )
    config = huggingface_config(settings) | {
        # Of a model with several dtypes, the widest loses nothing.
        "torch_dtype": next(name for name in DTYPES if name in dtypes),
        **{name: value for name, value in (generation_config or {}).items() if name in _TOKEN_IDS},
    }
    with new_folder(path) as folder:
        written = safetensors.write_folder(folder, tensors, shard_bytes=shard_bytes)
        write_object(folder / "config.json", config)
        if generation_config:
            write_object(folder / "generation_config.json", generation_config)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")
        if finish is not None:
            finish(folder, written)


def read_along(
    settings: DecoderSettings,
    params: Mapping[str, Any],
    *,
    dtype: DTypeLike | None = None,
    shard_bytes: int = 5 * 2**30,
) -> None:
    """A process's part in a `save_huggingface` of the same arguments in another one.

    Where parameters lie across processes, one writes and all others call this: every block is
    gathered from all, and no process ever holds more than a block.
    """
    safetensors.read_along(_cast_tensors(settings, params, dtype), shard_bytes=shard_bytes)


def _cast_tensors(
    settings: DecoderSettings, params: Mapping[str, Any], dtype: DTypeLike | None
) -> dict[str, LazyTensor]:
    """The tensors that a folder holds, by name; nothing is read yet."""
    target = checked_dtype(dtype)
    named = export_tensors(settings, trees.flatten(params))
    return {name: cast(tensor, target, name=name) for name, tensor in named.items()}


def checked_dtype(dtype: DTypeLike | None) -> np.dtype[Any] | None:
    """One of the three float dtypes, or None.

    Raises:
      ConversionError: Another dtype.

    >>> checked_dtype("bfloat16")
    dtype(bfloat16)
    """
    if dtype is None:
        return None
    if np.dtype(dtype) not in DTYPES.values():
        raise ConversionError(f"dtype {dtype} cannot hold weights; choose from {', '.join(DTYPES)}")
    return np.dtype(dtype)


def export_tensors(
    settings: DecoderSettings, leaves: Mapping[str, LazyTensor | jax.Array]
) -> dict[str, LazyTensor]:
    """The tensors of a Hugging Face file, by name, from leaves by path; nothing is read yet.

    Raises:
      ConversionError: Leaves missing, unexpected or of another shape.
    """
    return rules.to_tensors(
        rules.decoder_rules(settings),
        {
            path: leaf if isinstance(leaf, LazyTensor) else from_array(leaf)
            for path, leaf in leaves.items()
        },
        sizes=rules.letter_sizes(settings),
        num_layers=settings.num_layers,
        what="the parameters to save",
    )


def _place(tensor: LazyTensor, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """The tensor's values on devices."""
    if sharding is None:
        return jnp.asarray(contiguous(tensor[...]))
    return jax.make_array_from_callback(
        tensor.shape, sharding, lambda index: contiguous(tensor[index]), dtype=tensor.dtype
    )


def _without_harmless(
    tensors: Mapping[str, LazyTensor], settings: DecoderSettings, *, what: str
) -> dict[str, LazyTensor]:
    """The tensors less those that repeat what is known: rotary tables and a tied output matrix."""
    kept = {name: tensor for name, tensor in tensors.items() if not _HARMLESS.fullmatch(name)}
    embedding = kept.get("model.embed_tokens.weight")
    if settings.tie_word_embeddings and embedding is not None and "lm_head.weight" in kept:
        if not _equal(kept.pop("lm_head.weight"), embedding):
            raise ConversionError(
                f"{what}: tie_word_embeddings is true, yet lm_head.weight differs from "
                "model.embed_tokens.weight; set tie_word_embeddings to false in config.json"
            )
    return kept


def _check_layers(
    settings: DecoderSettings, tensors: Mapping[str, LazyTensor], *, what: str
) -> None:
    """Raises if the layers cannot all be there, before the names of their tensors are listed."""
    if settings.num_layers > len(tensors):
        raise ConversionError(
            f"{what}: num_hidden_layers is {settings.num_layers}, of which each needs tensors of "
            f"its own, and there are {len(tensors)} in all; correct the config or fetch the model "
            "again"
        )


def _equal(first: LazyTensor, second: LazyTensor) -> bool:
    """Whether two matrices hold the same bytes, compared a few thousand rows at a time."""
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    starts = range(0, first.shape[0], _COMPARE_ROWS)
    blocks = (slice(start, start + _COMPARE_ROWS) for start in starts)
    return all(first[block].tobytes() == second[block].tobytes() for block in blocks)


def check_vocabulary(
    settings: DecoderSettings, tokenizer: "PreTrainedTokenizerFast | None"
) -> None:
    """Raises if some token has no row; more rows than tokens are padding and stay.

    Raises:
      ConversionError: Names both numbers.
    """
    if tokenizer is not None and len(tokenizer) > settings.vocab_size:
        raise ConversionError(
            f"the tokenizer has {len(tokenizer)} tokens, the embedding {settings.vocab_size} rows; "
            "they belong to different models, or tokens were added without their rows"
        )


def _is_gguf(path: pathlib.Path) -> bool:
    """Whether the path names a GGUF file, after checking that it is there."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; expected a model folder or a .gguf file")
    if path.is_file() and path.suffix != ".gguf":
        raise ConversionError(f"{path} is a file; expected a model folder or a .gguf file")
    return path.is_file()
