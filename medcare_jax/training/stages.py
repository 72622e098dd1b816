"""The two stages and what happens between them; everything here is a pure function.

| stage | base | knowledge | noise | alignment |
|---|---|---|---|---|
| mka | frozen | learns | learns | - |
| da | frozen, attention knowledge merged in | frozen | dropped | learns |
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from medcare_jax.models.aggregators import (
    ATTENTION_PROJECTIONS,
    DA_ATTENTION_COMPONENTS,
    DA_COMPONENTS,
    FFN_PROJECTIONS,
    KNOWLEDGE_COMPONENTS,
    MKA_COMPONENTS,
    Components,
)
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.folding import fold
from medcare_jax.orthogonality import (
    extend_basis,
    orthonormal_basis,
    product_basis,
    project_tree,
)
from medcare_jax.params import (
    ALIGNMENT,
    BASE,
    KNOWLEDGE,
    NOISE,
    Tree,
    flatten,
    merge,
    split,
    unflatten,
)
from medcare_jax.settings import AdapterSettings, ConstraintSettings


@dataclasses.dataclass(frozen=True)
class Stage:
    """Which adapter trees exist in a stage and which of them learn.

    Attributes:
      name: `mka` or `da`; also the stage's folder in the workdir.
      components: Adapters of the decoder.
      learning: Trees that gradients are taken for.
    """

    name: str
    components: Components
    learning: tuple[str, ...]


MKA = Stage("mka", MKA_COMPONENTS, (KNOWLEDGE, NOISE))
# What the method is compared with: one LoRA that learns in both stages.
ONE_LORA_MKA = Stage("mka", KNOWLEDGE_COMPONENTS, (KNOWLEDGE,))
ONE_LORA_DA = Stage("da", KNOWLEDGE_COMPONENTS, (KNOWLEDGE,))


def alignment_stage(adapters: AdapterSettings, constraint: ConstraintSettings) -> Stage:
    """Downstream Alignment, as the adapter and constraint settings want it."""
    return Stage(
        "da",
        DA_ATTENTION_COMPONENTS if adapters.alignment_on_attention else DA_COMPONENTS,
        (ALIGNMENT,) if constraint.freeze_knowledge else (KNOWLEDGE, ALIGNMENT),
    )


def stage_key(seed: int, stage: Stage) -> Array:
    """The root of a stage's randomness: initial values, and the dropout of every step."""
    return jax.random.fold_in(jax.random.key(seed), {"mka": 1, "da": 2}[stage.name])


@functools.partial(jax.jit, static_argnums=0)
def init_adapters(decoder: Decoder, key: Array) -> dict[str, Tree]:
    """Fresh adapter trees of a decoder: A uniform in ±1/sqrt(in), B zero, all float32.

    Compiled, so no base weight is ever made: nothing of the result depends on one.
    """
    tokens = jnp.zeros((1, 1), jnp.int32)
    trees = split(decoder.init(key, tokens, tokens, tokens + 1)["params"])
    return {name: tree for name, tree in trees.items() if name != BASE}


class Handover(NamedTuple):
    """What Downstream Alignment begins with.

    Attributes:
      base: The base with the attention's knowledge merged in, in the base's own dtype.
      knowledge: The FFN's knowledge, unchanged.
      alignment: The new module: A inside the complement of the knowledge, B zero.
      basis: The knowledge subspace of each alignment leaf, float32; width 0 where there is none.
    """

    base: Tree
    knowledge: Tree
    alignment: Tree
    basis: Tree


def begin_alignment(
    trees: Mapping[str, Tree],
    decoder: Decoder,
    key: Array,
    *,
    constraint: ConstraintSettings,
    data_basis: Tree | None = None,
) -> Handover:
    """From the end of MKA to the start of DA: drop noise, merge attention, basis, new module.

    Args:
      trees: `base` and `knowledge` at the end of MKA; `noise` may be there and is not looked at.
      decoder: The decoder of the DA stage.
      key: For the initial values of the alignment module.
      constraint: Where the basis comes from, and whether the alignment starts inside its
        complement, as the projection of its updates needs; a penalty or no constraint starts
        anywhere.
      data_basis: From `training/activations.py`; for `activation` only.

    Returns:
      The frozen trees, the alignment module and the basis it has to keep off.
    """
    knowledge = select(trees[KNOWLEDGE], FFN_PROJECTIONS)
    attention = select(trees[KNOWLEDGE], ATTENTION_PROJECTIONS)
    alignment = init_adapters(decoder, key)[ALIGNMENT]
    basis = extend_basis(protected_basis(knowledge, constraint, data_basis), alignment)
    return Handover(
        base=fold(merge({BASE: trees[BASE], KNOWLEDGE: attention}), decoder.adapters),
        knowledge=knowledge,
        alignment=(
            project_tree(alignment, basis, strength=constraint.strength)
            if constraint.use_projection
            else alignment
        ),
        basis=basis,
    )


def protected_basis(
    knowledge: Tree, constraint: ConstraintSettings, data_basis: Tree | None = None
) -> Tree:
    """The subspace that the alignment has to keep off, from where the settings say.

    Raises:
      ValueError: `activation`, and no basis of data.
    """
    side: Any = constraint.side
    if constraint.basis == "activation":
        if not constraint.needs_data:
            return {}
        if data_basis is None:
            raise ValueError("constraint.basis = 'activation': expected a basis of data, got none")
        return data_basis
    if constraint.basis == "svd":
        return product_basis(
            knowledge, energy=constraint.energy, side=side, tolerance=constraint.tolerance
        )
    return orthonormal_basis(knowledge, side=side, tolerance=constraint.tolerance)


def select(tree: Tree, projections: tuple[str, ...]) -> Tree:
    """The part of an adapter tree that belongs to the named projections.

    >>> select({"q_proj": {"lora_a": 1}, "up_proj": {"lora_a": 2}}, ("up_proj",))
    {'up_proj': {'lora_a': 2}}
    """
    flat = flatten(tree)
    return unflatten(
        {path: leaf for path, leaf in flat.items() if path.split("/")[-2] in projections}
    )
