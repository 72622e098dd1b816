"""What a step has to compute at the least, by arithmetic on shapes: the yardstick of a plan."""

from medcare_jax.models.aggregators import (
    ATTENTION_PROJECTIONS,
    DA_ATTENTION_COMPONENTS,
    DA_COMPONENTS,
    MKA_COMPONENTS,
)
from medcare_jax.models.families import DecoderSettings
from medcare_jax.params import NOISE
from medcare_jax.settings import AdapterSettings
from medcare_jax.training.stages import MKA


def projection_shapes(s: DecoderSettings) -> dict[str, tuple[int, int]]:
    """Input and output width of each projection of a layer."""
    d, f, q, kv = (
        s.hidden_size,
        s.intermediate_size,
        s.num_heads * s.head_dim,
        s.num_kv_heads * s.head_dim,
    )
    return {
        "q_proj": (d, q),
        "k_proj": (d, kv),
        "v_proj": (d, kv),
        "o_proj": (q, d),
        "gate_proj": (d, f),
        "up_proj": (d, f),
        "down_proj": (f, d),
    }


def matmul_parameters(s: DecoderSettings) -> int:
    """Parameters that every token is multiplied with: projections and output matrix."""
    layer = sum(wide * out for wide, out in projection_shapes(s).values())
    return s.num_layers * layer + s.hidden_size * s.vocab_size


def useful_flops(s: DecoderSettings, adapters: AdapterSettings, stage: str, length: int) -> float:
    """FLOP per token that a step cannot do without: 4N + 3 · attention + 3 · adapters.

    The frozen base needs no weight gradients, so 4 and not 6 per parameter. Causal attention is
    counted for a row of one segment; recomputation is not useful.
    """
    attention = 2 * length * s.num_heads * s.head_dim * s.num_layers
    return 4.0 * matmul_parameters(s) + 3.0 * (attention + _adapter_flops(s, adapters, stage))


def _adapter_flops(s: DecoderSettings, adapters: AdapterSettings, stage: str) -> float:
    """FLOP per token of all adapters, forward."""
    components = MKA_COMPONENTS if stage == MKA.name else DA_COMPONENTS
    if stage != MKA.name and adapters.alignment_on_attention:
        components = DA_ATTENTION_COMPONENTS
    total = 0
    for name, (wide, out) in projection_shapes(s).items():
        is_attention = name in ATTENTION_PROJECTIONS
        present = components.attention if is_attention else components.ffn
        rank = sum(adapters.rank_of(each, is_attention=is_attention) for each in present)
        router = adapters.experts * wide if NOISE in present else 0
        total += 2 * ((wide + out) * rank + router)
    return total * s.num_layers
