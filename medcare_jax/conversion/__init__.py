"""Weights in and out: Hugging Face and GGUF bases, the authors' checkpoints, PEFT adapters."""

from medcare_jax.conversion.embedded import find_embedded_model
from medcare_jax.conversion.huggingface import (
    load_base,
    load_generation_config,
    load_tokenizer,
    save_huggingface,
)
from medcare_jax.conversion.peft import load_peft, save_peft
from medcare_jax.conversion.reference import RoutersMissingError, load_reference, save_reference
from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.models.folding import fold

__all__ = [
    "ConversionError",
    "RoutersMissingError",
    "find_embedded_model",
    "fold",
    "load_base",
    "load_generation_config",
    "load_peft",
    "load_reference",
    "load_tokenizer",
    "save_huggingface",
    "save_peft",
    "save_reference",
]
