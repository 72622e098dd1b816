"""Attention in blocks against all scores at once, and what it does not read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from medcare_jax import params as trees
from medcare_jax.models.aggregators import Components
from medcare_jax.models.attention import attend, packed_mask
from medcare_jax.models.blockwise import BLOCK, attend_blocks, visible_blocks
from medcare_jax.params import KNOWLEDGE
from medcare_jax.settings import REMAT_POLICIES, MeshSettings
from medcare_jax.sharding import make_mesh
from tests.helpers import FLOAT32, random_inputs, random_params, tiny_decoder


def draw(segments, *, heads=4, kv_heads=2, width=8, dtype=jnp.float32, seed=0):
    """Queries, keys, values and a cotangent for rows of segments."""
    random = np.random.default_rng(seed)
    shape = np.shape(segments)
    sizes = (heads, kv_heads, kv_heads, heads)
    return [jnp.asarray(random.standard_normal((*shape, n, width)), dtype) for n in sizes]


def both(segments, **sizes):
    """Output and gradients in blocks and at once; nothing of padding, which nobody reads."""
    q, k, v, down = draw(segments, **sizes)
    segments = jnp.asarray(segments, jnp.int32)
    is_real = (segments > 0)[..., None, None]

    @jax.jit
    def ours(q, k, v):
        out = attend_blocks(q, k, v, visible_blocks(segments), residual_name="out")
        return jnp.where(is_real, out, jnp.zeros_like(out))

    @jax.jit
    def expected(q, k, v):
        out = attend(q, k, v, packed_mask(segments), implementation="xla")
        return jnp.where(is_real, out, jnp.zeros_like(out))

    return [(out, *pull(down)) for out, pull in (jax.vjp(f, q, k, v) for f in (ours, expected))]


def packed(lengths, total):
    """One row of segments of these lengths, then padding."""
    row = np.repeat(np.arange(1, len(lengths) + 1), lengths)[:total]
    return np.pad(row, (0, total - len(row)))


@given(
    st.lists(st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=6), min_size=2, max_size=2),
    st.integers(1, 3 * BLOCK + 5),
    st.sampled_from([(1, 1), (4, 2), (3, 3)]),
)
@settings(max_examples=10, deadline=None)
def test_output_and_gradients_are_those_of_all_scores_at_once(rows, total, heads):
    segments = np.stack([packed(lengths, total) for lengths in rows])
    ours, expected = both(segments, heads=heads[0], kv_heads=heads[1])
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * max(1, np.abs(other).max()))


def test_segments_that_come_back_are_seen_again():
    """Packing never makes such rows, but the mask has a meaning for them."""
    segments = np.repeat([[1, 2, 1, 3]], BLOCK, axis=1)
    assert visible_blocks(jnp.asarray(segments)).first.tolist() == [[0, 1, 0, 3]]
    ours, expected = both(segments)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6)


def test_bfloat16_is_as_near_to_float32_as_all_scores_at_once():
    segments = np.stack([packed([200, 30, 100], 384), packed([384], 384)])
    exact = both(segments)[1]
    ours, dense = both(segments, dtype=jnp.bfloat16)
    for one, other, true in zip(ours, dense, exact, strict=True):
        assert one.dtype == jnp.bfloat16
        off = [
            np.square(np.asarray(each, np.float32) - true).mean() ** 0.5 for each in (one, other)
        ]
        assert off[0] <= 1.1 * off[1]


def test_blocks_of_earlier_dialogues_and_of_later_tokens_are_not_read():
    segments = np.repeat([[1, 2, 2, 3]], BLOCK, axis=1)
    q, k, v, down = draw(segments)
    rotten = [each.at[:, :BLOCK].set(jnp.nan).at[:, 3 * BLOCK :].set(jnp.nan) for each in (k, v)]
    seen = visible_blocks(jnp.asarray(segments))
    out, pull = jax.vjp(lambda *x: attend_blocks(*x, seen, residual_name="out"), q, *rotten)
    gradients = pull(down.at[:, :BLOCK].set(0).at[:, 3 * BLOCK :].set(0))
    middle = slice(BLOCK, 3 * BLOCK)
    assert all(np.isfinite(each[:, middle]).all() for each in (out, *gradients))
    dense = attend(q, *rotten, packed_mask(jnp.asarray(segments)), implementation="xla")
    assert np.isnan(dense[:, middle]).any()


def test_a_row_of_padding_does_not_make_the_others_see_more():
    dialogues = np.repeat([[1, 2, 3, 4]], BLOCK, axis=1)
    with_padding = np.concatenate([dialogues, np.zeros_like(dialogues)])
    assert visible_blocks(jnp.asarray(with_padding)).first.tolist() == [[0, 1, 2, 3]] * 2
    out = attend_blocks(
        *draw(with_padding)[:3], visible_blocks(jnp.asarray(with_padding)), residual_name="out"
    )
    assert np.isfinite(out).all()


def temporary(form, length):
    """Bytes that a gradient of one head needs beside its arguments and results."""
    segments = jnp.ones((1, length), jnp.int32)
    q, k, v, down = draw(segments, heads=1, kv_heads=1)

    def gradients(q, k, v, segments):
        return jax.vjp(lambda *x: form(*x, segments), q, k, v)[1](down)

    compiled = jax.jit(gradients).lower(q, k, v, segments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_nothing_holds_all_scores():
    in_blocks = lambda *x: attend_blocks(*x[:3], visible_blocks(x[3]), residual_name="out")
    at_once = lambda *x: attend(*x[:3], packed_mask(x[3]), implementation="xla")
    short, long = 8 * BLOCK, 16 * BLOCK
    assert temporary(in_blocks, long) < 3 * temporary(in_blocks, short)
    assert temporary(at_once, long) > 3 * temporary(at_once, short)
    assert temporary(in_blocks, long) < 0.1 * temporary(at_once, long)


def gradients_of_decoder(attention, remat="full"):
    """A jitted function of learning parameters and base for packed rows with padding, and both."""
    compute = dataclasses.replace(FLOAT32, attention=attention, remat=remat)
    decoder = tiny_decoder("qwen2", Components(ffn=(KNOWLEDGE,)), compute)
    length = 3 * BLOCK - 5
    tokens = random_inputs(4, length).tokens
    rows = ([length], [50, 20, 70], [10, 150], [1])
    segments = jnp.asarray(np.stack([packed(lengths, length) for lengths in rows]), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens.shape)
    learning = trees.split(random_params(decoder))
    base = {"base": learning.pop("base")}

    def loss(learning, base):
        params = trees.merge({**learning, **base})
        hidden = decoder.apply({"params": params}, tokens, positions, segments)
        return jnp.sum(jnp.where(segments[..., None] > 0, hidden[..., ::2] ** 2, 0.0))

    return jax.jit(jax.grad(loss)), learning, base


@pytest.fixture(scope="module")
def expected_gradients():
    gradients, *trees_ = gradients_of_decoder("xla")
    return gradients(*trees_)


def assert_same(ours, expected):
    for path, leaf in trees.flatten(expected).items():
        scale = np.abs(leaf).max()
        assert scale > 0, path
        other = trees.flatten(ours)[path]
        np.testing.assert_allclose(other, leaf, rtol=0, atol=2e-5 * scale, err_msg=path)


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_a_decoder_learns_the_same_whatever_is_computed_again(remat, expected_gradients):
    gradients, *parts = gradients_of_decoder("blocks", remat)
    assert_same(gradients(*parts), expected_gradients)


def test_a_decoder_on_a_mesh_learns_the_same(expected_gradients):
    with jax.set_mesh(make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))):
        gradients, *parts = gradients_of_decoder("blocks")
        assert_same(gradients(*parts), expected_gradients)


def test_devices_say_nothing_to_each_other():
    """Messages of two attentions at once, or of loops of unequal length, could cross."""
    segments = jnp.asarray(np.stack([packed([200, 30], 256)] * 4), jnp.int32)
    with jax.set_mesh(make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))):
        q, k, v, _ = (
            jax.device_put(each, P(("data", "fsdp"), None, "tensor")) for each in draw(segments)
        )
        segments = jax.device_put(segments, P(("data", "fsdp")))

        def attended(q, k, v, segments):
            out = attend_blocks(q, k, v, visible_blocks(segments), residual_name="out")
            return jnp.sum(out**2), out

        said = {}
        for form in (jax.grad, jax.value_and_grad):
            gradients = jax.jit(form(attended, argnums=(0, 1, 2), has_aux=True))
            text = gradients.lower(q, k, v, segments).compile().as_text()
            kinds = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "permute")
            said[form] = [kind for kind in kinds if kind in text]
    assert said == {jax.grad: [], jax.value_and_grad: ["all-reduce"]}  # the sum over devices


def test_what_is_kept_is_not_attended_to_again():
    loops = {}
    for remat in ("full", "attention"):
        gradients, *parts = gradients_of_decoder("blocks", remat)
        loops[remat] = gradients.lower(*parts).compile().as_text().count(" while(")
    assert loops["attention"] == loops["full"] - 2
