"""The base model that a run names: from disk, from the packaged demo model, or random for tests."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medcare_jax.agreement import exchange, together
from medcare_jax.conversion import hub
from medcare_jax.conversion.embedded import find_embedded_model
from medcare_jax.conversion.huggingface import (
    check_vocabulary,
    load_base,
    load_generation_config,
    load_tokenizer,
    open_base,
)
from medcare_jax.files import file_digest
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import DecoderSettings, check_model, decoder_settings
from medcare_jax.params import Tree, flatten, unflatten
from medcare_jax.settings import DTYPES, AdapterSettings, BaseSettings, ComputeSettings
from medcare_jax.sharding import sharding_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EMBEDDED = "embedded"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
RANDOM = "random"
_SPREAD = 0.02  # of the decoder's initial kernels and embeddings
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model, ready to train on.

    Attributes:
      name: What reports and cards call it.
      settings: Its architecture.
      params: Its parameters, placed on the mesh, layers stacked.
      tokenizer: With chat template.
      digest: The sha256 that stands for its weights in checkpoints and cards.
      generation_config: What its exports say of how to generate.
    """

    name: str
    settings: DecoderSettings
    params: Tree
    tokenizer: "PreTrainedTokenizerFast"
    digest: str
    generation_config: Mapping[str, Any]


def load(settings: BaseSettings, mesh: Mesh, *, seed: int) -> Base:
    """Reads the base onto the mesh, each device its own slices, in the dtype that is asked for.

    Args:
      settings: `path` is a Hugging Face folder, a .gguf file, a name of the hub (`ORG/NAME` or
        `ORG/NAME@REVISION`), `embedded` or `random`.
      mesh: Where the parameters go.
      seed: Of random weights.

    Raises:
      FileNotFoundError: No such folder, file or package; says how to get it.
      ConversionError: The files do not hold a model that is supported.
    """
    dtype = DTYPES[settings.dtype]
    if settings.path == RANDOM:
        return _random(settings.random, mesh, dtype=dtype, seed=seed)
    with together():
        path = locate(settings)
        architecture, tokenizer = open_base(path)[0], load_tokenizer(path)
        check_model(mesh, architecture)
        check_vocabulary(architecture, tokenizer)
        generation_config = load_generation_config(path)
        decoder, params = load_base(
            path, dtype=dtype, sharding_for=lambda leaf, shape: sharding_for(mesh, leaf, shape)
        )
    return Base(
        name=name_of(settings),
        settings=decoder,
        params=params,
        tokenizer=tokenizer,
        digest=base_digest(path),
        generation_config=generation_config,
    )


def locate(settings: BaseSettings) -> pathlib.Path:
    """Where the folder or file of a base lies that is not random; fetched if the hub has it."""
    return find_embedded_model() if settings.path == EMBEDDED else hub.locate(settings.path)


def name_of(settings: BaseSettings) -> str:
    """What reports and cards call a base.

    >>> name_of(BaseSettings(path="embedded"))
    'SmolLM2-135M-Instruct'
    """
    return EMBEDDED_NAME if settings.path == EMBEDDED else hub.label(settings.path)


def base_digest(path: pathlib.Path) -> str:
    """The sha256 over names and contents of the files that decide a base's weights.

    Of several processes each reads its share of the files, and all have to call it.
    """
    files = [path] if path.is_file() else [path / "config.json", *path.glob("*.safetensors")]
    files.sort()
    count = jax.process_count()
    with together():
        mine = [file_digest(file) for file in files[jax.process_index() :: count]]
    shares = [said.split() for said in exchange(" ".join(mine))]
    total = hashlib.sha256()
    for number, file in enumerate(files):
        total.update(f"{file.name}:{shares[number % count][number // count]};".encode())
    return total.hexdigest()


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer without training: one id per byte, the chat markers, a ChatML template.

    >>> byte_tokenizer()("é").input_ids
    [195, 169]
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
    vocabulary = {letter: byte for byte, letter in letters.items()}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_CHAT_TEMPLATE,
    )


def _random(fields: Mapping[str, Any], mesh: Mesh, *, dtype: Any, seed: int) -> Base:
    """A base with random weights, for tests and benchmarks; its tokenizer knows bytes."""
    settings, tokenizer = decoder_settings(fields), byte_tokenizer()
    check_model(mesh, settings)
    check_vocabulary(settings, tokenizer)
    decoder = Decoder(settings, AdapterSettings(), NO_ADAPTERS, ComputeSettings())
    tokens = jnp.zeros((1, 1), jnp.int32)
    spread = fields.get("initializer_range", _SPREAD) / _SPREAD

    def make(key: jax.Array) -> Tree:
        params: Tree = decoder.init(key, tokens, tokens, tokens + 1)["params"]
        leaves = flatten(params)
        for path in leaves:
            if path.endswith(("kernel", "embedding")):
                leaves[path] = leaves[path] * spread
        return dict(unflatten({path: leaf.astype(dtype) for path, leaf in leaves.items()}))

    key = jax.random.key(seed)
    shapes = flatten(jax.eval_shape(make, key))
    places = {path: sharding_for(mesh, path, leaf.shape) for path, leaf in shapes.items()}
    params = jax.jit(make, out_shardings=unflatten(places))(key)
    digest = hashlib.sha256(json.dumps([dict(fields), seed], sort_keys=True).encode()).hexdigest()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return Base(RANDOM, settings, params, tokenizer, digest, ends)
