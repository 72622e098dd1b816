"""Rotary positions: each pair of head dimensions is turned by an angle of its token's position.

Source: Su et al., RoFormer, arXiv:2104.09864, in the half-split layout of Hugging Face, where
dimension i pairs with i + h/2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medcare_jax.models.families import DecoderSettings, RopeScaling
from medcare_jax.shapes import Positions
from medcare_jax.sharding import current_platform


class Rotations(NamedTuple):
    """What `rotate` multiplies by, float32: the same for all layers and heads.

    Attributes:
      cos: [b, t, 1, h].
      sin: [b, t, 1, h], negative in the first half of h.
    """

    cos: Float[Array, "b t 1 h"]
    sin: Float[Array, "b t 1 h"]


def rope_frequencies(settings: DecoderSettings) -> Float[Array, " h/2"]:
    """Angle per position of each pair of head dimensions, radians, float32."""
    # Outside the compiled program, whose power function rounds in another way than PyTorch's.
    with jax.ensure_compile_time_eval():
        exponents = jnp.arange(0, settings.head_dim, 2, dtype=jnp.float32) / settings.head_dim
        frequencies = 1.0 / settings.rope_theta**exponents
    scaling = settings.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    return _llama3_frequencies(frequencies, scaling)


def _llama3_frequencies(frequencies: Array, scaling: RopeScaling) -> Array:
    """Long wavelengths slowed by the factor, short ones kept, a ramp between (Llama 3.1)."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * jnp.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = jnp.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)


def make_rotations(positions: Positions, frequencies: Float[Array, " h/2"]) -> Rotations:
    """The rotations of tokens at these positions."""
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return Rotations(jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1))


def rotate(x: Float[Array, "b t n h"], rotations: Rotations) -> Float[Array, "b t n h"]:
    """Queries or keys at their positions; in float32, returned in the dtype of x."""
    wide, swapped = x.astype(jnp.float32), _swap_halves(x).astype(jnp.float32)
    return (wide * rotations.cos + swapped * rotations.sin).astype(x.dtype)


def _swap_halves(x: Float[Array, "b t n h"]) -> Float[Array, "b t n h"]:
    """Each head with its second half first; exact."""
    half = x.shape[-1] // 2
    if current_platform() != "tpu":
        return jnp.roll(x, half, axis=-1)
    # Half a head is half of a TPU's lanes, and to cut there costs more copies than a matmul.
    swap = jnp.roll(jnp.eye(2 * half, dtype=x.dtype), half, axis=1)
    return jnp.matmul(x, swap, precision="highest")
