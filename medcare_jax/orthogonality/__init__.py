r"""Training one LoRA tree without touching what another has learned.

A frozen *knowledge* adapter reads its inputs through the columns of its ``A``. If every column
of a new *alignment* adapter is orthogonal to them, the two read different directions. This
package finds such a subspace, keeps an optimiser out of it, and measures whether it held. It
needs jax and optax only, works on any tree with leaves ``lora_a`` ``[..., d, r]`` and ``lora_b``
``[..., r, out]`` (leading axes are stacked layers), and on any sharding.

Four rules make the constraint hold. Where all are kept, the leak :math:`\|Q^\top A\| / \|A\|`
after 1,000 steps of clipped AdamW with weight decay is 3e-7; without any constraint it is 0.8:

1. **Project last.** Adam's element-wise scaling, clipping and weight decay come before
   `project_updates` in the chain. A projected *gradient* leaks 2e-2.
2. **Project the initial value too**, with `project_tree`: the transform keeps a complement, it
   does not find one. A free start leaks 8e-2.
3. **Keep adapters and bases in float32.** In bfloat16 every addition rounds out of the
   complement again (7e-2); `retract` bounds that.
4. **Hand the basis to** ``update`` **as an argument.** Closed over, it would become a constant
   of the compiled step: copied to every device, and compiled anew whenever it grows.

Where the basis comes from · which side · where it acts · how hard:

* `orthonormal_basis` (span of A or of B's rows, or vectors of your own), `product_basis`
  (leading singular vectors of A·B), `covariance_basis` (leading directions of activations, from
  `accumulate_covariance`) and `sketch_basis` (the same of spaces too large for a ``[d, d]`` sum,
  from `accumulate_sketch`); `union` grows one by another, `extend_basis` fits it to a tree.
* ``side="input" | "output" | "both"``, then carried by the basis tree itself.
* At init or on gradients `project_tree`; on updates `project_updates`; on parameters `retract`;
  in the loss `overlap_penalty` (against the knowledge itself, as the paper has it) or
  `subspace_penalty` (against any basis).
* ``strength`` from 0 to 1; it may be traced, so one ``vmap`` runs a whole sweep.

All of them take the tree, then the basis. `measure` is what to log of a step; `leak`,
`principal_cosines`, `overlap_energy`, `effective_rank` and `activation_effect` look closer.

Examples:
  >>> import jax
  >>> import jax.numpy as jnp
  >>> import optax
  >>> from medcare_jax import orthogonality
  >>> keys = jax.random.split(jax.random.key(0), 3)
  >>> def lora(key, d=16, r=2, out=5):
  ...     lora_a, lora_b = jax.random.normal(key, (d, r)), jnp.zeros((r, out))
  ...     return {"up_proj": {"lora_a": lora_a, "lora_b": lora_b}}
  >>> knowledge, alignment = lora(keys[0]), lora(keys[1])
  >>> basis = orthogonality.orthonormal_basis(knowledge)
  >>> alignment = orthogonality.project_tree(alignment, basis)  # rule 2
  >>> tx = optax.chain(
  ...     optax.clip_by_global_norm(1.0),
  ...     optax.adamw(1e-2, weight_decay=0.1),
  ...     orthogonality.project_updates(),  # rule 1
  ... )
  >>> x = jax.random.normal(keys[2], (8, 16))
  >>> def loss(alignment):
  ...     adapter = alignment["up_proj"]
  ...     return jnp.square(x @ adapter["lora_a"] @ adapter["lora_b"] - 1.0).mean()
  >>> @jax.jit
  ... def step(alignment, state, basis):  # rule 4
  ...     updates, state = tx.update(jax.grad(loss)(alignment), state, alignment, basis=basis)
  ...     return optax.apply_updates(alignment, updates), state
  >>> state, before = tx.init(alignment), loss(alignment)
  >>> for _ in range(20):
  ...     alignment, state = step(alignment, state, basis)
  >>> bool(loss(alignment) < before), bool(orthogonality.max_leak(alignment, basis) < 1e-6)
  (True, True)

References:
  Liao et al., `MedCare: Advancing Medical LLMs through Decoupling Clinical Alignment and
  Knowledge Aggregation <https://arxiv.org/abs/2406.17484>`_, 2024
"""

from medcare_jax.orthogonality.leaves import Side
from medcare_jax.orthogonality.metrics import (
    Measures,
    activation_effect,
    closed_share,
    effective_rank,
    leak,
    max_leak,
    measure,
    overlap_energy,
    principal_cosines,
)
from medcare_jax.orthogonality.penalty import Norm, overlap_penalty, subspace_penalty
from medcare_jax.orthogonality.projection import (
    ProjectState,
    RetractState,
    project_tree,
    project_updates,
    removed_share,
    retract,
)
from medcare_jax.orthogonality.sketch import (
    Sketch,
    accumulate_sketch,
    is_whole,
    make_sketch,
    refine_sketch,
    sketch_basis,
)
from medcare_jax.orthogonality.subspace import (
    accumulate_covariance,
    covariance_basis,
    extend_basis,
    narrow_basis,
    orthonormal_basis,
    product_basis,
    union,
)

__all__ = [
    "Measures",
    "Norm",
    "ProjectState",
    "RetractState",
    "Side",
    "Sketch",
    "accumulate_covariance",
    "accumulate_sketch",
    "activation_effect",
    "closed_share",
    "covariance_basis",
    "effective_rank",
    "extend_basis",
    "is_whole",
    "leak",
    "make_sketch",
    "max_leak",
    "measure",
    "narrow_basis",
    "orthonormal_basis",
    "overlap_energy",
    "overlap_penalty",
    "principal_cosines",
    "product_basis",
    "project_tree",
    "project_updates",
    "refine_sketch",
    "removed_share",
    "retract",
    "sketch_basis",
    "subspace_penalty",
    "union",
]
