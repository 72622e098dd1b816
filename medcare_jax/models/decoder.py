"""The decoder of Qwen2, Qwen3 and Llama, with adapters on its projections.

Layers are scanned, so every leaf below `model/layers` has a leading axis of length l. Nothing
here knows of devices but `shard_batch`, which keeps the residual stream cut along the batch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from medcare_jax.models.aggregators import (
    ATTENTION_PROJECTIONS,
    ROUTER_LOGITS,
    AdaptedLinear,
    Components,
)
from medcare_jax.models.attention import (
    ATTENDED,
    KVCache,
    Visible,
    attend_cached,
    attend_packed,
    cached_mask,
    choose_kernel,
    visible,
)
from medcare_jax.models.families import DecoderSettings
from medcare_jax.models.lora import RANKS
from medcare_jax.models.rotary import Rotations, make_rotations, rope_frequencies, rotate
from medcare_jax.settings import DTYPES, AdapterSettings, ComputeSettings
from medcare_jax.shapes import Hidden, Logits, Params, Positions, Segments, Tokens
from medcare_jax.sharding import shard_batch

LayerCache = tuple[Array, Array] | None

_QKV, _MID, _GATE, _UP = "qkv", "mid", "gate", "up"

# What the backward pass finds in memory beside each layer's input; the rest it computes again.
SAVED: dict[str, tuple[str, ...]] = {
    "full": (),
    "attention": (ATTENDED,),
    "qkv": (_QKV, ATTENDED, _MID),
    "ffn": (ATTENDED, _GATE, _UP, RANKS, ROUTER_LOGITS),
    "products": (_QKV, ATTENDED, _MID, _GATE, _UP, RANKS, ROUTER_LOGITS),
}


class RMSNorm(nn.Module):
    """x / rms(x) · scale, over the last axis; the mean square in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The normalised array in x's dtype."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        scale = jnp.expand_dims(scale.astype(x.dtype), range(x.ndim - 1))
        return wide.astype(x.dtype) * scale


class _Part(nn.Module):
    """What attention, MLP and block have in common: settings, and how to make a projection."""

    settings: DecoderSettings
    adapters: AdapterSettings
    components: Components
    compute: ComputeSettings

    def project(self, name: str, features: int, *, use_bias: bool = False) -> AdaptedLinear:
        """The projection of that name with the adapters of its kind."""
        is_attention = name in ATTENTION_PROJECTIONS
        return AdaptedLinear(
            features,
            components=self.components.attention if is_attention else self.components.ffn,
            is_attention=is_attention,
            use_bias=use_bias,
            adapters=self.adapters,
            compute=self.compute,
            name=name,
        )


class Attention(_Part):
    """Grouped-query self-attention."""

    @nn.compact
    def __call__(
        self, x: Hidden, rotations: Rotations, mask: Visible, cache: LayerCache
    ) -> tuple[Hidden, LayerCache]:
        """The attended values; with a cache also the new tokens' keys and values, [b, t, k, h]."""
        q, k, v = self._heads(x)
        q, k = rotate(q, rotations), rotate(k, rotations)
        if cache is None:
            q, k, v = (checkpoint_name(heads, _QKV) for heads in (q, k, v))
            out = attend_packed(q, k, v, mask, kernel=self.compute.attention)
        else:
            out = attend_cached(q, cache, (k, v), mask)
        out = out.reshape(*x.shape[:-1], -1)
        out = self.project("o_proj", self.settings.hidden_size)(out)
        return out, None if cache is None else (k, v)

    def _heads(self, x: Hidden) -> tuple[Array, Array, Array]:
        """Queries [b, t, n, h], keys and values [b, t, k, h]."""
        s = self.settings
        counts = {"q_proj": s.num_heads, "k_proj": s.num_kv_heads, "v_proj": s.num_kv_heads}
        q, k, v = (
            self.project(name, heads * s.head_dim, use_bias=s.use_qkv_bias)(x).reshape(
                *x.shape[:-1], heads, s.head_dim
            )
            for name, heads in counts.items()
        )
        if s.use_qk_norm:
            q = RMSNorm(s.rms_norm_eps, name="q_norm")(q)
            k = RMSNorm(s.rms_norm_eps, name="k_norm")(k)
        return q, k, v


class MLP(_Part):
    """The SwiGLU feed-forward network."""

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        """down(silu(gate(x)) · up(x))."""
        width = self.settings.intermediate_size
        gate = checkpoint_name(self.project("gate_proj", width)(x), _GATE)
        up = checkpoint_name(self.project("up_proj", width)(x), _UP)
        return self.project("down_proj", self.settings.hidden_size)(nn.silu(gate) * up)


class Block(_Part):
    """One pre-norm layer."""

    @nn.compact
    def __call__(
        self, x: Hidden, rotations: Rotations, mask: Visible, cache: LayerCache
    ) -> tuple[Hidden, LayerCache]:
        """The residual stream after the layer, and what `Attention` returns beside."""
        parts = (self.settings, self.adapters, self.components, self.compute)
        eps = self.settings.rms_norm_eps
        normed = RMSNorm(eps, name="input_layernorm")(x)
        attended, new = Attention(*parts, name="self_attn")(normed, rotations, mask, cache)
        x = checkpoint_name(x + attended, _MID)
        normed = RMSNorm(eps, name="post_attention_layernorm")(x)
        x = shard_batch(x + MLP(*parts, name="mlp")(normed))
        self.sow("intermediates", "hidden", x)
        return x, new


class Embedding(nn.Module):
    """The token embedding."""

    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, tokens: Tokens) -> Hidden:
        """Each token's vector, in the dtype of the table."""
        init = nn.initializers.normal(0.02)
        return self.param("embedding", init, (self.vocab_size, self.width))[tokens]


class Head(nn.Module):
    """The output matrix of a model that does not share it with the embedding."""

    vocab_size: int

    @nn.compact
    def __call__(self, hidden: Hidden) -> Logits:
        """Float32 logits."""
        init = nn.initializers.normal(0.02)
        return _logits(hidden, self.param("kernel", init, (hidden.shape[-1], self.vocab_size)))


class Trunk(_Part):
    """Embedding, scanned layers, final norm."""

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        positions: Positions,
        mask: Visible,
        cache: LayerCache,
    ) -> tuple[Hidden, LayerCache]:
        """Hidden states after the final norm, and the new keys and values of all layers."""
        s = self.settings
        x = Embedding(s.vocab_size, s.hidden_size, name="embed_tokens")(tokens)
        x = shard_batch(x.astype(DTYPES[self.compute.dtype]))
        self.sow("intermediates", "embedded", x)
        layers = nn.scan(
            self._block(),
            length=s.num_layers,
            variable_axes={"params": 0, "intermediates": 0, "activations": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, 0),
            out_axes=0,
        )
        parts = (s, self.adapters, self.components, self.compute)
        rotations = make_rotations(positions, rope_frequencies(s))
        x, new = layers(*parts, name="layers")(x, rotations, mask, cache)
        return RMSNorm(s.rms_norm_eps, name="norm")(x), new

    def _block(self) -> type[Block]:
        """The block, recomputed in the backward pass as the remat policy says."""
        if self.compute.remat == "none":
            return Block
        policy = jax.checkpoint_policies.save_only_these_names(*SAVED[self.compute.remat])
        return nn.remat(Block, prevent_cse=False, policy=policy)


class Decoder(nn.Module):
    """A causal language model with adapters.

    Dropout is on exactly when `apply` is given a `dropout` rng. With `mutable=["intermediates"]`
    it also returns the embedding, every layer's output and the router logits; with "activations",
    what each projection reads and gives.

    Attributes:
      settings: The architecture.
      adapters: Sizes of the adapters.
      components: Which adapters there are, and where.
      compute: Precision, remat and attention kernel.
    """

    settings: DecoderSettings
    adapters: AdapterSettings
    components: Components
    compute: ComputeSettings

    def setup(self) -> None:
        """Names the two parts as Hugging Face does."""
        parts = (self.settings, self.adapters, self.components, self.compute)
        self.model = Trunk(*parts)
        if not self.settings.tie_word_embeddings:
            self.lm_head = Head(self.settings.vocab_size)

    def __call__(
        self,
        tokens: Tokens,
        positions: Positions,
        segments: Segments,
        cache: KVCache | None = None,
    ) -> Hidden | tuple[Hidden, KVCache]:
        """Hidden states after the final norm; with a cache also the new tokens' entries for it.

        The cache itself is only read, so no layer copies it: `write_slots` puts the entries
        in, once for all layers.

        Args:
          tokens: Token ids, int32 [b, t].
          positions: Position of each token in its own sequence, int32 [b, t]. With a cache
            growing along a row; slots from a row's first position on are not seen.
          segments: Which packed sequence each token is of, from 1; 0 is padding. int32 [b, t].
          cache: Keys and values of earlier tokens, or None. It may have fewer rows, c: each then
            serves b / c neighbouring rows of tokens.
        """
        if self.is_initializing() and not self.settings.tie_word_embeddings:
            self.lm_head(jnp.zeros((1, 1, self.settings.hidden_size)))
        if cache is None:
            kernel = choose_kernel(
                self.compute.attention,
                rows=len(tokens),
                length=tokens.shape[1],
                heads=self.settings.num_kv_heads,
            )
            # Initial values are made from one row, which a mesh cannot cut for the kernel.
            kernel = "xla" if self.is_initializing() else kernel
            return self.model(tokens, positions, visible(segments, kernel), None)[0]
        mask = cached_mask(positions, segments, cache.segments)
        hidden, new = self.model(tokens, positions, mask, (cache.keys, cache.values))
        keys, values = (entries.swapaxes(2, 3) for entries in new)
        return hidden, KVCache(keys, values, segments)

    def unembed(self, hidden: Hidden) -> Logits:
        """Float32 logits of hidden states."""
        return _logits(hidden, output_matrix(self.variables["params"]))


def output_matrix(params: Params) -> Float[Array, "d v"]:
    """The matrix that makes logits of hidden states: the head's, or the embedding transposed."""
    if "lm_head" in params:
        return params["lm_head"]["kernel"]
    return params["model"]["embed_tokens"]["embedding"].T


def _logits(hidden: Hidden, kernel: Float[Array, "d v"]) -> Logits:
    """Hidden states times output matrix, summed in float32."""
    return jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
