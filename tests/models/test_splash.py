"""The TPU kernel, interpreted, against plain softmax attention: packing, groups, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.models import splash
from medcare_jax.models.attention import attend, attend_packed, choose_kernel, packed_mask
from medcare_jax.models.splash import block_size, splash_attend
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh


def draw(rows, length, heads, kv_heads, width):
    """Queries, keys, values and a weight for each output, float32."""
    keys = jax.random.split(jax.random.key(0), 4)
    normal = lambda key, n: jax.random.normal(key, (rows, length, n, width))
    return [normal(key, n) for key, n in zip(keys, (heads, kv_heads, kv_heads, heads), strict=True)]


def packed(rows, length):
    """Segments of two or three dialogues and padding at the end, other cuts in each row."""
    cuts = np.linspace(0.2, 0.4, rows)[:, None] * length
    index = np.arange(length)[None]
    segments = 1 + (index > cuts) + (index > 2 * cuts)
    return jnp.asarray(np.where(index < 0.9 * length, segments, 0), jnp.int32)


def plain(q, k, v, segments):
    return attend(q, k, v, packed_mask(segments), implementation="xla")


def kernel(q, k, v, segments):
    return splash_attend(q, k, v, segments, residual_name="out")


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "width"),
    [
        pytest.param(256, 2, 2, 128, id="blocks", marks=pytest.mark.slow),
        pytest.param(200, 4, 2, 64, id="groups, padded rows and heads"),
    ],
)
def test_outputs_and_gradients_are_those_of_plain_attention(length, heads, kv_heads, width):
    *qkv, weights = draw(2, length, heads, kv_heads, width)
    segments = packed(2, length)

    def both(attention):
        loss = lambda q, k, v: jnp.sum(attention(q, k, v, segments) * weights)
        return attention(*qkv, segments), jax.grad(loss, argnums=(0, 1, 2))(*qkv)

    expected, ours = both(plain), both(kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), ours, expected)


def test_on_a_mesh_rows_and_heads_are_cut():
    q, k, v, _ = draw(4, 128, 4, 2, 32)
    segments = packed(4, 128)
    mesh = make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        ours = jax.jit(kernel)(q, k, v, segments)
    assert tuple(ours.sharding.spec)[:3] == (("data", "fsdp"), None, "tensor")
    np.testing.assert_allclose(ours, plain(q, k, v, segments), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("rows", "heads", "chosen"), [(4, 2, "splash"), (6, 2, "xla"), (4, 3, "xla")]
)
def test_auto_takes_splash_where_the_mesh_can_cut_for_it(monkeypatch, rows, heads, chosen):
    monkeypatch.setattr("medcare_jax.models.attention.current_platform", lambda: "tpu")
    with jax.set_mesh(make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))):
        assert choose_kernel("auto", rows=rows, length=3072, heads=heads) == chosen
    # Without a mesh there is nothing to cut.
    assert choose_kernel("auto", rows=rows, length=3072, heads=heads) == "splash"


def test_the_kernel_that_is_named_is_taken():
    assert choose_kernel("auto", rows=1, length=3072, heads=1) == "blocks"  # tests run on CPU
    assert choose_kernel("auto", rows=1, length=64, heads=1) == "xla"
    with jax.set_mesh(make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))):
        assert choose_kernel("auto", rows=4, length=3072, heads=2) == "xla"
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        assert choose_kernel("auto", rows=1, length=3072, heads=1) == "blocks"
    assert choose_kernel("splash", rows=1, length=3072, heads=1) == "splash"
    q, k, v, _ = draw(1, 128, 2, 2, 32)
    segments = packed(1, 128)
    named = attend_packed(q, k, v, segments, kernel="splash")
    np.testing.assert_array_equal(named, kernel(q, k, v, segments))


def test_it_is_not_for_gpus(monkeypatch):
    monkeypatch.setattr(splash, "current_platform", lambda: "gpu")
    x = jnp.ones((1, 8, 2, 4))
    with pytest.raises(ValueError, match="on a GPU take 'auto'"):
        splash_attend(x, x, x, jnp.ones((1, 8), jnp.int32), residual_name="x")


def test_blocks_divide_the_row():
    for length in (128, 384, 1536, 3072, 4096):
        assert length % block_size(length) == 0
