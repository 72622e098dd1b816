"""Tiny decoders in which no two sizes are equal, and their PyTorch twins.

Two sizes that agree by chance hide a swapped axis, so here b 8, t 11, d 20, f 36, l 3, n 4, k 2,
h 6, v 98, r 5, e 7, and every product of them that is an array's axis, all differ.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medcare_jax import params as trees
from medcare_jax.models.aggregators import MKA_COMPONENTS, Components
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import DecoderSettings, RopeScaling
from medcare_jax.settings import AdapterSettings, ComputeSettings

ROWS, LENGTH = 8, 11

_SIZES: dict[str, Any] = {
    "vocab_size": 98,
    "hidden_size": 20,
    "intermediate_size": 36,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,  # and not hidden / heads = 5
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
}

TINY: dict[str, DecoderSettings] = {
    "qwen2": DecoderSettings(
        family="qwen2",
        rope_theta=1e6,
        rope_scaling=None,
        use_qkv_bias=True,
        use_qk_norm=False,
        tie_word_embeddings=False,
        **_SIZES,
    ),
    "qwen3": DecoderSettings(
        family="qwen3",
        rope_theta=5e3,
        rope_scaling=RopeScaling("linear", factor=2.5),
        use_qkv_bias=False,
        use_qk_norm=True,
        tie_word_embeddings=False,
        **_SIZES,
    ),
    "llama": DecoderSettings(
        family="llama",
        rope_theta=1e4,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_position_embeddings=32),
        use_qkv_bias=False,
        use_qk_norm=False,
        tie_word_embeddings=True,
        **_SIZES,
    ),
}

TINY_ADAPTERS = AdapterSettings(
    rank=5, alpha=8.0, shared_experts=2, experts=7, experts_per_token=3, dropout=0.25
)
FLOAT32 = ComputeSettings(dtype="float32", adapter_dtype="float32", remat="none")
BFLOAT16 = ComputeSettings(dtype="bfloat16", adapter_dtype="bfloat16", remat="none")


def tiny_decoder(
    family: str = "qwen2",
    components: Components = MKA_COMPONENTS,
    compute: ComputeSettings = FLOAT32,
) -> Decoder:
    """A decoder of a family in its tiny size."""
    return Decoder(TINY[family], TINY_ADAPTERS, components, compute)


def abstract_params(decoder: Decoder) -> Any:
    """Shapes and dtypes of a decoder's parameters; nothing is allocated."""
    ones = jnp.ones((1, 2), jnp.int32)
    return jax.eval_shape(decoder.init, jax.random.key(0), ones, ones, ones)["params"]


def random_params(decoder: Decoder, seed: int = 0) -> dict[str, Any]:
    """Parameters with every leaf away from what it is initialised to, norms and B included."""
    random = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.2 * random.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(decoder))


class Inputs(NamedTuple):
    """What a decoder is called with, int32 [b, t] each."""

    tokens: jax.Array
    positions: jax.Array
    segments: jax.Array


def random_inputs(rows: int = ROWS, length: int = LENGTH, *, vocab_size: int = 98) -> Inputs:
    """Rows of one full-length sequence each."""
    tokens = np.random.default_rng(7).integers(0, vocab_size, (rows, length))
    positions = np.broadcast_to(np.arange(length), tokens.shape)
    return Inputs(*(jnp.asarray(x, jnp.int32) for x in (tokens, positions, tokens * 0 + 1)))


class Outputs(NamedTuple):
    """A decoder's states: embedding, every layer's output, final norm's output, logits."""

    embedded: np.ndarray
    layers: np.ndarray
    hidden: np.ndarray
    logits: np.ndarray


@functools.partial(jax.jit, static_argnums=0)
def _outputs(decoder: Decoder, params: Any, inputs: Inputs) -> Outputs:
    hidden, sown = decoder.apply({"params": params}, *inputs, mutable=["intermediates"])
    logits = decoder.apply({"params": params}, hidden, method="unembed")
    states = sown["intermediates"]["model"]
    return Outputs(states["embedded"][0], states["layers"]["hidden"][0], hidden, logits)


def outputs_of(decoder: Decoder, params: Any, inputs: Inputs) -> Outputs:
    """All states of a decoder as numpy arrays; compiled once per decoder and shape."""
    return jax.tree.map(np.asarray, _outputs(decoder, params, inputs))


def huggingface_weights(base: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Base parameters under Hugging Face's names, linear weights as [out, in]."""
    weights = {}
    for path, leaf in trees.flatten(base).items():
        owner, _, name = path.rpartition("/")
        name = name if name == "bias" else "weight"
        array = np.asarray(leaf)
        array = np.swapaxes(array, -1, -2) if path.endswith("kernel") else array
        if owner.startswith("model/layers/"):
            tail = owner.removeprefix("model/layers/").replace("/", ".")
            weights |= {f"model.layers.{i}.{tail}.{name}": part for i, part in enumerate(array)}
        else:
            weights[f"{owner.replace('/', '.')}.{name}"] = array
    return weights


def torch_twin(config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Any:
    """The transformers model of a `config.json` with these weights; every one must be used."""
    import torch
    import transformers

    kind = getattr(transformers, config["architectures"][0])
    model = kind(transformers.AutoConfig.for_model(**config)).eval()
    state = {name: torch.tensor(array) for name, array in weights.items()}
    if config["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model


def outputs_of_twin(model: Any, tokens: Any) -> Outputs:
    """The same states of a transformers model; it does not give the last layer's, so l - 1."""
    import torch

    with torch.no_grad():
        result = model(torch.tensor(np.asarray(tokens)), output_hidden_states=True)
    states = [state.numpy() for state in result.hidden_states]
    return Outputs(states[0], np.stack(states[1:-1]), states[-1], result.logits.numpy())
