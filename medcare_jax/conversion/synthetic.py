"""Random models of any size on disk, for benchmarks of reading and writing."""

import dataclasses
import math
import os
import pathlib

import ml_dtypes
import numpy as np

from medcare_jax.conversion import rules, safetensors
from medcare_jax.conversion.metadata import write_object
from medcare_jax.conversion.tensors import Index, LazyTensor, Shape
from medcare_jax.models.families import DecoderSettings, huggingface_config

# The shape of Qwen1.5-7B.
SEVEN_BILLION = DecoderSettings(
    family="qwen2",
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=11_008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    rope_theta=1e6,
    rope_scaling=None,
    rms_norm_eps=1e-6,
    use_qkv_bias=True,
    use_qk_norm=False,
    tie_word_embeddings=False,
    max_position_embeddings=32_768,
)
_SHARD_BYTES = 4 * 2**30


def write_model(
    folder: pathlib.Path,
    settings: DecoderSettings = SEVEN_BILLION,
    *,
    layers: int | None = None,
    seed: int = 0,
) -> int:
    """Writes a Hugging Face folder of random bfloat16 weights; nothing whole is in memory.

    Args:
      folder: Made; must not exist.
      settings: The architecture.
      layers: Another number of layers than the architecture has.
      seed: Of the weights.

    Returns:
      Bytes of all values.
    """
    settings = dataclasses.replace(settings, num_layers=layers or settings.num_layers)
    sizes = rules.letter_sizes(settings)
    random = np.random.default_rng(seed)
    tensors = {
        name: _random_tensor(rule.file_shape(sizes), random)
        for rule in rules.decoder_rules(settings)
        for name in rule.sources(settings.num_layers)
    }
    folder.mkdir(parents=True)
    write_object(folder / "config.json", huggingface_config(settings))
    safetensors.write_folder(folder, tensors, shard_bytes=_SHARD_BYTES)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return sum(tensor.nbytes for tensor in tensors.values())


def _random_tensor(shape: Shape, random: np.random.Generator) -> LazyTensor:
    """Values of either sign between 2^-7 and 2; every read draws new ones."""

    def read(index: Index) -> np.ndarray:
        sizes = [part.stop - part.start for part in index]
        bits = np.frombuffer(random.bytes(2 * math.prod(sizes)), np.uint16)
        exponents = (np.uint16(120) + ((bits >> np.uint16(7)) & np.uint16(7))) << np.uint16(7)
        values: np.ndarray = (bits & np.uint16(0x807F)) | exponents
        return np.reshape(values.view(ml_dtypes.bfloat16), sizes)

    return LazyTensor(shape, np.dtype(ml_dtypes.bfloat16), read)
