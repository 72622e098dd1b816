"""Random models on disk."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medcare_jax.conversion import rules, safetensors
from medcare_jax.conversion.tensors import from_array
from medcare_jax.models.families import DecoderSettings, huggingface_config

MakeFolder = Callable[..., dict[str, np.ndarray]]


@pytest.fixture
def make_folder() -> MakeFolder:
    """Writes a random base model in Hugging Face form; gives its tensors by name."""

    def make(
        folder: pathlib.Path,
        settings: DecoderSettings,
        dtype: Any = np.float32,
        *,
        seed: int = 0,
        shard_bytes: int = 1 << 30,
        without: tuple[str, ...] = (),
        **extra: np.ndarray,
    ) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        sizes = rules.letter_sizes(settings)
        tensors = {
            name: (0.3 * random.standard_normal(rule.file_shape(sizes))).astype(dtype)
            for rule in rules.decoder_rules(settings)
            for name in rule.sources(settings.num_layers)
            if name not in without
        } | extra
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(huggingface_config(settings)))
        lazy = {name: from_array(tensor) for name, tensor in tensors.items()}
        safetensors.write_folder(folder, lazy, shard_bytes=shard_bytes)
        return tensors

    return make
