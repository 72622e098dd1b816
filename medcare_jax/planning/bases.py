"""The shape of the base that a plan is for; its weights are never needed."""

import pathlib
from collections.abc import Mapping
from typing import Any

from medcare_jax.conversion.metadata import read_object
from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.models.families import DecoderSettings, decoder_settings
from medcare_jax.settings import BaseSettings, SettingsError

# hidden, FFN, layers, heads, vocabulary: config.json of Qwen1.5-*-Chat (paper, table of bases).
QWEN1_5 = {
    "Qwen1.5-1.8B": (2048, 5504, 24, 16, 151936),
    "Qwen1.5-7B": (4096, 11008, 32, 32, 151936),
    "Qwen1.5-14B": (5120, 13696, 40, 40, 152064),
}


def base_shape(base: BaseSettings) -> tuple[DecoderSettings, str]:
    """The architecture of a base, and where it was read from.

    Raises:
      SettingsError: No config.json there, and no built-in shape of that name; or what is there is
        no model that is supported.
    """
    file = pathlib.Path(base.path) / "config.json"
    if file.is_file():
        try:
            fields = read_object(file)
        except ConversionError as error:  # which names the file
            raise SettingsError(str(error)) from None
        return _shape(fields, str(file)), str(file)
    if base.path == "random":
        return _shape(base.random, "base.random"), "base.random"
    for name, sizes in QWEN1_5.items():
        if name in base.path:
            return _qwen(*sizes), f"built-in shape of {name} ({file} is not there)"
    raise SettingsError(
        f"base.path = {base.path!r}: no {file}, and no built-in shape of that name "
        f"({', '.join(QWEN1_5)}). A plan needs the model's config.json, not its weights"
    )


def _shape(fields: Mapping[str, Any], source: str) -> DecoderSettings:
    """What the fields of a config.json say; whatever is wrong with them carries their source."""
    try:
        return decoder_settings(fields)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise SettingsError(f"{source}: {error}") from None


def _qwen(hidden: int, ffn: int, layers: int, heads: int, vocabulary: int) -> DecoderSettings:
    """A Qwen1.5 of these sizes."""
    return decoder_settings(
        {
            "model_type": "qwen2",
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "vocab_size": vocabulary,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "max_position_embeddings": 32768,
        }
    )
