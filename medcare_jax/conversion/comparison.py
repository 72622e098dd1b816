"""Two models on the same prompts, each read layer by layer, so that neither is ever whole.

This is how an export is checked against the model that it was made from.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medcare_jax.conversion.tensors import ConversionError, LazyTensor
from medcare_jax.models.aggregators import NO_ADAPTERS, Components
from medcare_jax.models.attention import packed_mask
from medcare_jax.models.decoder import Block, RMSNorm
from medcare_jax.models.families import DecoderSettings
from medcare_jax.models.rotary import make_rotations, rope_frequencies
from medcare_jax.params import unflatten
from medcare_jax.settings import AdapterSettings, ComputeSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROMPTS = (
    "A 54-year-old woman has had chest pain for two hours. What should be done first?",
    "高血压患者的饮食需要注意什么？",
    "List three common side effects of metformin.",
)
_LENGTH = 16
_COLUMNS = 16_384
_LAYERS = "model/layers/"
_FLOAT32 = ComputeSettings(dtype="float32", adapter_dtype="float32", remat="none")


class StreamedModel(NamedTuple):
    """A model whose parameters are read when they are needed.

    Attributes:
      settings: Its architecture.
      leaves: Its parameters by path, adapters included; stacked layers, [l, ...].
      adapters: Sizes and scale of its adapters.
      components: Which adapters it has.
    """

    settings: DecoderSettings
    leaves: Mapping[str, LazyTensor]
    adapters: AdapterSettings = AdapterSettings()
    components: Components = NO_ADAPTERS


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far two models are apart, over all positions of the prompts.

    Attributes:
      positions: How many were compared.
      max_logit_difference: Largest |difference| of a logit.
      kl: Mean KL divergence from the first model's distribution to the second's, nats.
      argmax_agreement: Share of positions where both put the same token first.
    """

    positions: int
    max_logit_difference: float
    kl: float
    argmax_agreement: float


def prompt_tokens(
    settings: DecoderSettings, tokenizer: "PreTrainedTokenizerFast | None"
) -> list[np.ndarray]:
    """The built-in prompts as int32 ids; ids drawn from the vocabulary where no tokenizer is."""
    if tokenizer is None:
        random = np.random.default_rng(0)
        return [random.integers(0, settings.vocab_size, _LENGTH, np.int32) for _ in PROMPTS]
    encoded = (tokenizer(text, add_special_tokens=False).input_ids for text in PROMPTS)
    return [np.asarray(ids[:_LENGTH], np.int32) for ids in encoded]


def compare_models(
    first: StreamedModel, second: StreamedModel, prompts: Sequence[np.ndarray]
) -> Agreement:
    """Runs both in float32 and compares their logits.

    Args:
      first: The model that is right.
      second: The model that is compared with it.
      prompts: Token ids, int32 [t] each; at least one token in all.

    Raises:
      ConversionError: A logit is not finite, so nothing can be said.
    """
    pairs = zip(streamed_logits(first, prompts), streamed_logits(second, prompts), strict=True)
    difference, divergence, same, positions = 0.0, 0.0, 0, 0
    for ours, theirs in pairs:
        _check_finite(ours, "to be converted")
        _check_finite(theirs, "converted")
        difference = max(difference, float(np.max(np.abs(ours - theirs))))
        left, right = (jax.nn.log_softmax(jnp.asarray(logits)) for logits in (ours, theirs))
        divergence += float(jnp.sum(jnp.exp(left) * (left - right)))
        same += int(np.sum(ours.argmax(-1) == theirs.argmax(-1)))
        positions += len(ours)
    # Rounding can make the sum of a zero divergence slightly negative.
    return Agreement(positions, difference, max(divergence, 0.0) / positions, same / positions)


def _check_finite(logits: np.ndarray, which: str) -> None:
    """Raises if a comparison would be one with NaN, which no maximum shows."""
    wrong = int((~np.isfinite(logits)).sum())
    if wrong:
        raise ConversionError(
            f"{wrong} of {logits.size} logits of the model {which} are not finite on a built-in "
            "prompt; look for NaN or infinity in its weights"
        )


def streamed_logits(model: StreamedModel, prompts: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Float32 logits [t, v] of each prompt; one layer of the model is in memory at a time."""
    embedding = model.leaves["model/embed_tokens/embedding"]
    rows = sorted({int(token) for prompt in prompts for token in prompt})
    table = {row: embedding[row : row + 1][0].astype(np.float32) for row in rows}
    width = max(len(prompt) for prompt in prompts)
    states = np.zeros((len(prompts), width, model.settings.hidden_size), np.float32)
    segments = np.zeros((len(prompts), width), np.int32)
    for number, prompt in enumerate(prompts):
        states[number, : len(prompt)] = [table[int(token)] for token in prompt]
        segments[number, : len(prompt)] = 1
    hidden = _run_layers(model, jnp.asarray(states), jnp.asarray(segments))
    real = np.asarray(hidden)[segments > 0]
    logits = np.concatenate([real @ block for block in _output_blocks(model)], axis=-1)
    ends = np.cumsum([len(prompt) for prompt in prompts])
    yield from np.split(logits, ends[:-1])


def _run_layers(model: StreamedModel, states: jax.Array, segments: jax.Array) -> jax.Array:
    """Hidden states after the final norm [b, t, d]."""
    for layer in range(model.settings.num_layers):
        params = unflatten(
            {
                path.removeprefix(_LAYERS): _wide(leaf[layer : layer + 1][0])
                for path, leaf in model.leaves.items()
                if path.startswith(_LAYERS)
            }
        )
        parts = (model.settings, model.adapters, model.components, _FLOAT32)
        states = _block(parts, params, states, segments)
    scale = {"scale": _wide(model.leaves["model/norm/scale"][...])}
    return jnp.asarray(RMSNorm(model.settings.rms_norm_eps).apply({"params": scale}, states))


def _output_blocks(model: StreamedModel) -> Iterator[np.ndarray]:
    """The output matrix [d, v] in blocks of columns, float32."""
    head = model.leaves.get("lm_head/kernel")
    embedding = model.leaves["model/embed_tokens/embedding"]
    for start in range(0, model.settings.vocab_size, _COLUMNS):
        part = slice(start, start + _COLUMNS)
        block = embedding[part].T if head is None else head[:, part]
        yield block.astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _block(parts: tuple[Any, ...], params: Any, states: jax.Array, segments: jax.Array) -> Any:
    """One layer."""
    positions = jnp.broadcast_to(jnp.arange(states.shape[1]), states.shape[:2])
    rotations = make_rotations(positions, rope_frequencies(parts[0]))
    mask = packed_mask(segments)
    return Block(*parts).apply({"params": params}, states, rotations, mask, None)[0]


def _wide(values: np.ndarray) -> jax.Array:
    """Values on the device as float32, which loses nothing."""
    return jnp.asarray(values.astype(np.float32))
