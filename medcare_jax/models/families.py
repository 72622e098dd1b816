"""Which models are supported: Hugging Face's `config.json` to `DecoderSettings` and back.

Every field that changes the arithmetic is either read or refused by name; none is ignored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from medcare_jax.fields import Fields
from medcare_jax.sharding import check_sizes


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for long contexts.

    Attributes:
      kind: `linear` (all frequencies divided by the factor) or `llama3` (only the low ones).
      factor: How much longer the context became.
      low_freq_factor: `llama3`: wavelengths above original length / this are fully scaled.
      high_freq_factor: `llama3`: wavelengths below original length / this are left alone.
      original_max_position_embeddings: `llama3`: context length before scaling, in tokens.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
    """Everything that fixes a decoder's parameters and arithmetic.

    Attributes:
      family: `qwen2` (Qwen1.5, Qwen2, Qwen2.5), `qwen3` or `llama`.
      vocab_size: Rows of the embedding, padding included (v).
      hidden_size: Width of the residual stream (d).
      intermediate_size: Width of the FFN (f).
      num_layers: Number of blocks (l).
      num_heads: Query heads (n).
      num_kv_heads: Key and value heads (k); divides `num_heads`.
      head_dim: Width of a head (h).
      rope_theta: Base of the rotary frequencies.
      rope_scaling: Long-context change of the frequencies, or None.
      rms_norm_eps: Added to the mean square in every RMSNorm.
      use_qkv_bias: Whether q, k and v have biases (Qwen2).
      use_qk_norm: Whether q and k are normalised per head (Qwen3).
      tie_word_embeddings: Whether the output matrix is the embedding.
      max_position_embeddings: Context length that the model was trained for, in tokens.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    rms_norm_eps: float
    use_qkv_bias: bool
    use_qk_norm: bool
    tie_word_embeddings: bool
    max_position_embeddings: int

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(
                f"head_dim {self.head_dim} is not an even number of at least 2, which rotary "
                "positions need"
            )


@dataclasses.dataclass(frozen=True)
class _Family:
    architecture: str
    use_qkv_bias: bool
    use_qk_norm: bool


FAMILIES: dict[str, _Family] = {
    "qwen2": _Family("Qwen2ForCausalLM", use_qkv_bias=True, use_qk_norm=False),
    "qwen3": _Family("Qwen3ForCausalLM", use_qkv_bias=False, use_qk_norm=True),
    "llama": _Family("LlamaForCausalLM", use_qkv_bias=False, use_qk_norm=False),
}

# Values that a field must have for our arithmetic to be the model's; absent means the same.
_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", None),
    "use_sliding_window": (False, None),
    "attention_bias": (False, None),
    "attention_dropout": (0.0, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "pretraining_tp": (1, None),
    "quantization_config": (None,),
}


_LLAMA3_FIELDS = [field.name for field in dataclasses.fields(RopeScaling) if field.name != "kind"]


class UnsupportedModelError(ValueError):
    """A model whose architecture or arithmetic is not implemented here."""


def decoder_settings(config: Mapping[str, Any]) -> DecoderSettings:
    """Reads a Hugging Face `config.json`.

    Args:
      config: The parsed file; transformers 4 and 5 layouts both work.

    Returns:
      The decoder's settings.

    Raises:
      UnsupportedModelError: An architecture or field value that is not implemented, by name.
      ValueError: A field is missing, or its value not of the type or range that it must have.

    >>> decoder_settings({"model_type": "gpt2"})
    Traceback (most recent call last):
    medcare_jax.models.families.UnsupportedModelError: model_type 'gpt2' is not supported; \
supported are qwen2, qwen3, llama
    """
    fields = Fields(config)
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {name!r} is not supported; supported are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[name]
    _refuse_unsupported(fields)
    heads = fields.size("num_attention_heads")
    hidden = fields.size("hidden_size")
    theta, scaling = _rope(fields)
    return DecoderSettings(
        family=name,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.size("num_key_value_heads", heads),
        # Qwen3's heads are wider than hidden / heads, so there is nothing to fall back on.
        head_dim=fields.size("head_dim", None if name == "qwen3" else max(hidden // heads, 1)),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=fields.number("rms_norm_eps"),
        use_qkv_bias=family.use_qkv_bias,
        use_qk_norm=family.use_qk_norm,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        max_position_embeddings=fields.size("max_position_embeddings"),
    )


def huggingface_config(settings: DecoderSettings) -> dict[str, Any]:
    """The `config.json` of a model in its Hugging Face form; `decoder_settings` reads it back."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": settings.rope_theta}
    if settings.rope_scaling is not None:
        parameters |= _scaling_fields(settings.rope_scaling)
    return {
        "architectures": [FAMILIES[settings.family].architecture],
        "model_type": settings.family,
        "vocab_size": settings.vocab_size,
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.num_layers,
        "num_attention_heads": settings.num_heads,
        "num_key_value_heads": settings.num_kv_heads,
        "head_dim": settings.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": settings.rms_norm_eps,
        # Both layouts: transformers 4 (and vLLM) read rope_theta, transformers 5 rope_parameters.
        "rope_theta": settings.rope_theta,
        "rope_parameters": parameters,
        "tie_word_embeddings": settings.tie_word_embeddings,
        "max_position_embeddings": settings.max_position_embeddings,
        "use_cache": True,
    } | ({} if settings.rope_scaling is None else {"rope_scaling": parameters})


def _refuse_unsupported(fields: Fields) -> None:
    """Raises on any field value that our arithmetic does not honour."""
    wrong = [
        f"{fields.place}{name} = {fields.content[name]!r} (supported: {allowed[0]!r})"
        for name, allowed in _REQUIRED_VALUES.items()
        if name in fields.content and fields.content[name] not in allowed
    ]
    kinds = set(fields.texts("layer_types")) - {"full_attention"}
    if kinds:
        wrong.append(f"layer_types with {', '.join(sorted(kinds))} (supported: full_attention)")
    if wrong:
        raise UnsupportedModelError(
            "config.json asks for what is not supported: " + "; ".join(wrong)
        )


def _rope(config: Fields) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary frequencies, from either layout of `config.json`, or both."""
    theta = config.number("rope_theta", 10_000.0)
    layouts = [config.inner(name) for name in ("rope_parameters", "rope_scaling")]
    found = [_rope_of(fields, theta) for fields in layouts if fields.content]
    if len(found) == 2 and found[0][1] != found[1][1]:
        said = " and ".join(repr(each and each.kind or "default") for _, each in found)
        raise UnsupportedModelError(
            f"rope_parameters and rope_scaling ask for different scalings, {said}; take one away"
        )
    return found[0] if found else (theta, None)


def _rope_of(fields: Fields, theta: float) -> tuple[float, RopeScaling | None]:
    """The same from one layout; `theta` is what stands beside it."""
    _refuse_unsupported(fields)
    theta = fields.number("rope_theta", theta)
    kind = fields.text("rope_type", fields.text("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise UnsupportedModelError(
            f"rope scaling {kind!r} is not supported; supported are default, linear, llama3"
        )
    names = ["factor"] if kind == "linear" else _LLAMA3_FIELDS
    missing = [name for name in names if not fields.has(name)]
    if missing:
        raise ValueError(f"rope scaling {kind!r} lacks {', '.join(missing)}")
    return theta, _scaling(kind, fields)


def _scaling(kind: str, fields: Fields) -> RopeScaling:
    """A scaling, all of whose numbers are there."""
    factor = fields.number("factor")
    if kind == "linear":
        return RopeScaling(kind, factor)
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if not low < high:  # between them lie the frequencies that are scaled in part
        raise ValueError(
            f"{fields.place}low_freq_factor = {low}, expected less than high_freq_factor = {high}"
        )
    return RopeScaling(kind, factor, low, high, fields.size("original_max_position_embeddings"))


def _scaling_fields(scaling: RopeScaling) -> dict[str, Any]:
    """The `rope_parameters` entries of a scaling."""
    fields = dataclasses.asdict(scaling)
    kind = fields.pop("kind")
    return {"rope_type": kind} | (fields if kind == "llama3" else {"factor": scaling.factor})


def check_model(mesh: Mesh | AbstractMesh, settings: DecoderSettings) -> None:
    """Raises, before anything is loaded, if a mesh does not fit a model.

    Raises:
      ShardingError: Names every size that is not divisible.
    """
    check_sizes(
        mesh,
        {
            "tensor": {
                "num_attention_heads": settings.num_heads,
                "num_key_value_heads": settings.num_kv_heads,
                "intermediate_size": settings.intermediate_size,
                "vocab_size": settings.vocab_size,
            },
            "fsdp": {
                "hidden_size": settings.hidden_size,
                "intermediate_size": settings.intermediate_size,
                "num_attention_heads x head_dim": settings.num_heads * settings.head_dim,
                "num_key_value_heads x head_dim": settings.num_kv_heads * settings.head_dim,
            },
        },
    )
