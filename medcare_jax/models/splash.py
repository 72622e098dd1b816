"""Causal attention of packed rows with JAX's Pallas kernel for TPU, on every mesh.

The kernel never holds a score matrix and skips blocks above the diagonal. It is local to a
device: rows are cut along the batch axes, heads along `tensor`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec as P

from medcare_jax.shapes import Keys, Queries, Segments
from medcare_jax.sharding import BATCH_AXES, current_platform

LANES = 128
"""What the kernel's blocks and heads are multiples of."""


def block_size(length: int) -> int:
    """The largest block of at most 1024 that divides a length, itself a multiple of 128.

    >>> block_size(3072), block_size(1536), block_size(384)
    (1024, 512, 128)
    """
    return max(block for block in (128, 256, 512, 1024) if length % block == 0)


def is_cuttable(rows: int, heads: int) -> bool:
    """Whether the current mesh cuts so many rows and key-value heads evenly; true without one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return True
    return not (rows % math.prod(mesh.shape[axis] for axis in BATCH_AXES)) and not (
        heads % mesh.shape["tensor"]
    )


def splash_attend(
    q: Queries, k: Keys, v: Keys, segments: Segments, *, residual_name: str
) -> Queries:
    """Softmax attention to earlier tokens of the same segment; [b, t, n, h] like q.

    Rows and heads that are no multiple of 128 are padded: head_dim 64 costs what 128 costs.
    On a CPU the kernel is interpreted, slowly, for tests.

    Args:
      q: Queries.
      k: Keys; their heads divide those of q.
      v: Values.
      segments: Of queries and keys alike.
      residual_name: What remat policies call the output and its log-sum-exp.

    Raises:
      ValueError: The devices are GPUs, for which the kernel was not written.
    """
    if current_platform() == "gpu":
        raise ValueError("compute.attention = 'splash' is for TPUs; on a GPU take 'auto'")
    attend = functools.partial(
        _attend_local, residual_name=residual_name, interpret=current_platform() != "tpu"
    )
    if not jax.sharding.get_abstract_mesh().empty:
        heads = P(BATCH_AXES, None, "tensor")
        attend = jax.shard_map(
            attend,
            in_specs=(heads, heads, heads, P(BATCH_AXES)),
            out_specs=heads,
            check_vma=False,  # the kernel does not say along which axes its output varies
        )
    return attend(q, k, v, segments)


def _attend_local(
    q: Queries, k: Keys, v: Keys, segments: Segments, *, residual_name: str, interpret: bool
) -> Queries:
    """The rows and heads of one device."""
    length, width = q.shape[1], q.shape[3]
    rest = -length % LANES
    ids = jnp.pad(segments, ((0, 0), (0, rest)))
    kernel = _kernel(q.shape[2], length + rest, residual_name, interpret=interpret)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, rest), (0, 0), (0, -width % LANES))).swapaxes(1, 2)
    scaled = q * jnp.asarray(width**-0.5, q.dtype)
    out = jax.vmap(kernel)(pad(scaled), pad(k), pad(v), splash.SegmentIds(ids, ids))
    return out.swapaxes(1, 2)[:, :length, :, :width].astype(q.dtype)


def _kernel(
    heads: int, length: int, residual_name: str, *, interpret: bool
) -> splash.SplashAttentionKernel:
    """The kernel for so many local query heads and rows of that length."""
    block = block_size(length)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        use_fused_bwd_kernel=True,
    )
    return splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=residual_name,
        interpret=interpret,
    )
