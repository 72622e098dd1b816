"""A projection with its adapters: Knowledge Aggregator, Noise Aggregator, alignment module."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from medcare_jax.models.dropout import dropout
from medcare_jax.models.lora import Factors, LoRA, low_rank_delta, uniform_fan_in
from medcare_jax.params import ALIGNMENT, KNOWLEDGE, NOISE
from medcare_jax.settings import DTYPES, AdapterSettings, ComputeSettings
from medcare_jax.sharding import gather_weight

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

ROUTER_LOGITS = "router_logits"
"""What remat policies call the logits of the experts: 8 numbers a token, six float32 passes."""


@dataclasses.dataclass(frozen=True)
class Components:
    """Which adapters the projections of a decoder carry.

    Attributes:
      attention: Those of q, k, v and o.
      ffn: Those of gate, up and down.
    """

    attention: tuple[str, ...] = ()
    ffn: tuple[str, ...] = ()


NO_ADAPTERS = Components()
# MKA without the noise that it learned beside: what is scored and handed over.
KNOWLEDGE_COMPONENTS = Components(attention=(KNOWLEDGE,), ffn=(KNOWLEDGE,))
MKA_COMPONENTS = Components(attention=(KNOWLEDGE,), ffn=(KNOWLEDGE, NOISE))
DA_COMPONENTS = Components(ffn=(KNOWLEDGE, ALIGNMENT))
DA_ATTENTION_COMPONENTS = Components(attention=(ALIGNMENT,), ffn=(KNOWLEDGE, ALIGNMENT))


def route(logits: Float[Array, "b t e"], experts_per_token: int) -> Float[Array, "b t e"]:
    """Gates of the experts: softmax over all, the largest kept and made to sum to 1, the rest 0.

    Source: method of Liao et al. 2024, section 3.2 (top-k of MoLoRA).

    >>> gates = route(jnp.log(jnp.array([[[1.0, 2.0, 6.0]]])), 2)
    >>> [round(gate, 4) for gate in gates[0, 0].tolist()]
    [0.0, 0.25, 0.75]
    """
    shares, chosen = jax.lax.top_k(jax.nn.softmax(logits), experts_per_token)
    shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    one_hot = jax.nn.one_hot(chosen, logits.shape[-1], dtype=shares.dtype)
    return jnp.einsum("...c,...ce->...e", shares, one_hot)


class NoiseAggregator(nn.Module):
    """Routed LoRA experts in the rank-space form: one wide LoRA whose columns are gated.

    Expert i owns columns i·r to (i+1)·r of `lora_a` and those rows of `lora_b`.
    """

    settings: AdapterSettings

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], features: int) -> Factors:
        """The factors of all experts and each token's gates; routing is done in float32."""
        width, experts, rank = x.shape[-1], self.settings.experts, self.settings.rank
        init = uniform_fan_in(width)
        kernel = self.param("router_kernel", init, (width, experts))
        bias = self.param("router_bias", init, (experts,))
        # An accelerator's quick product would send tokens to other experts than float32 does.
        logits = jnp.matmul(x.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
        logits = checkpoint_name(logits + jnp.expand_dims(bias, (0, 1)), ROUTER_LOGITS)
        self.sow("intermediates", ROUTER_LOGITS, logits)
        gates = route(logits, self.settings.experts_per_token)
        return Factors(
            self.param("lora_a", init, (width, experts * rank)),
            self.param("lora_b", nn.initializers.zeros, (experts * rank, features)),
            jnp.repeat(gates, rank, axis=-1),
        )


class AdaptedLinear(nn.Module):
    """y = x W + b + scale · (KA(x) + NA(x) + AM(x)), with those adapters that are named.

    With every lora_b at zero the result is the plain projection's, bit for bit.

    Attributes:
      features: Output width.
      components: Which adapters there are.
      is_attention: Whether this is q, k, v or o; knowledge is narrower there.
      use_bias: Whether the base has a bias.
    """

    features: int
    components: tuple[str, ...]
    is_attention: bool
    use_bias: bool
    adapters: AdapterSettings
    compute: ComputeSettings

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t f"]:
        """The projection in the compute dtype. Dropout is on when a `dropout` rng is given."""
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
        self.sow("activations", "inputs", x)
        y = x @ gather_weight(f"{self.name}/kernel", kernel.astype(x.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + jnp.expand_dims(bias.astype(x.dtype), (0, 1))
        if self.components:
            y = y + self._delta(x).astype(y.dtype)
        self.sow("activations", "outputs", y)
        return y

    def _delta(self, x: Float[Array, "b t d"]) -> Float[Array, "b t f"]:
        """What the adapters add, in the adapter dtype."""
        inputs = x.astype(DTYPES[self.compute.adapter_dtype])
        if NOISE not in self.components and self.has_rng("dropout"):
            # The reference's mixture has no dropout; where there is some, one mask serves all.
            inputs = dropout(inputs, self.adapters.dropout, self.make_rng("dropout"))
        factors = [self._adapter(name)(inputs, self.features) for name in self.components]
        return low_rank_delta(inputs, factors, scale=self.adapters.scale)

    def _adapter(self, name: str) -> NoiseAggregator | LoRA:
        """The module of a component."""
        if name == NOISE:
            return NoiseAggregator(self.adapters, name=name)
        return LoRA(self.adapters.rank_of(name, is_attention=self.is_attention), name=name)
