"""The letters of every shape comment and annotation, and the array aliases built from them.

b batch, t query, s key, d model, f ffn, n heads, k kv heads, h head dim, v vocab, r rank,
e experts, q basis width, l layers.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Bool, Float, Int

Tokens = Int[Array, "b t"]
Positions = Int[Array, "b t"]
Segments = Int[Array, "b t"]
Targets = Bool[Array, "b t"]
Hidden = Float[Array, "b t d"]
Logits = Float[Array, "b t v"]
Queries = Float[Array, "b t n h"]
Keys = Float[Array, "b s k h"]
AttentionMask = Bool[Array, "b t s"]

Params = Mapping[str, Any]
"""Nested dicts of arrays, as Linen makes them."""

__all__ = [
    "AttentionMask",
    "Hidden",
    "Keys",
    "Logits",
    "Params",
    "Positions",
    "Queries",
    "Segments",
    "Targets",
    "Tokens",
]
