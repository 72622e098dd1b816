"""The decoder against transformers, and against itself cut up in other ways."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from medcare_jax import params as trees
from medcare_jax.models.aggregators import (
    DA_ATTENTION_COMPONENTS,
    MKA_COMPONENTS,
    NO_ADAPTERS,
    Components,
)
from medcare_jax.models.attention import make_cache, write_slots
from medcare_jax.models.decoder import output_matrix
from medcare_jax.models.families import huggingface_config
from medcare_jax.params import KNOWLEDGE
from tests.helpers import (
    BFLOAT16,
    FLOAT32,
    LENGTH,
    ROWS,
    TINY,
    Inputs,
    huggingface_weights,
    outputs_of,
    outputs_of_twin,
    random_inputs,
    random_params,
    tiny_decoder,
    torch_twin,
)

EXACT = {"rtol": 0, "atol": 1e-5}


def with_zero_b(params):
    """The parameters with every lora_b at zero, as at the start of a stage."""
    flat = trees.flatten(params)
    return trees.unflatten(
        {path: jnp.zeros_like(x) if "lora_b" in path else x for path, x in flat.items()}
    )


def with_base_in(params, dtype):
    """The parameters with the base in a dtype; adapters stay float32."""
    parts = trees.split(params)
    return trees.merge(parts | {"base": jax.tree.map(lambda x: x.astype(dtype), parts["base"])})


@pytest.mark.torch
@pytest.mark.parametrize("family", TINY)
def test_states_and_logits_are_those_of_transformers(family):
    decoder = tiny_decoder(family, NO_ADAPTERS)
    params, inputs = random_params(decoder), random_inputs()
    ours = outputs_of(decoder, params, inputs)
    twin = torch_twin(huggingface_config(TINY[family]), huggingface_weights(params))
    theirs = outputs_of_twin(twin, inputs.tokens)
    np.testing.assert_array_equal(ours.embedded, theirs.embedded)
    np.testing.assert_allclose(ours.layers[:-1], theirs.layers, **EXACT)
    np.testing.assert_allclose(ours.hidden, theirs.hidden, **EXACT)
    np.testing.assert_allclose(ours.logits, theirs.logits, **EXACT)


@pytest.mark.parametrize("compute", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_a_decoder_with_fresh_adapters_is_the_base_bit_for_bit(compute):
    inputs = random_inputs()
    base = tiny_decoder("qwen2", NO_ADAPTERS, compute)
    expected = outputs_of(base, with_base_in(random_params(base), compute.dtype), inputs)
    for components in (MKA_COMPONENTS, DA_ATTENTION_COMPONENTS):
        decoder = tiny_decoder("qwen2", components, compute)
        params = random_params(decoder)
        fresh = trees.split(with_zero_b(params)) | {"base": random_params(base)}
        actual = outputs_of(decoder, with_base_in(trees.merge(fresh), compute.dtype), inputs)
        for ours, plain in zip(actual, expected, strict=True):
            assert ours.tobytes() == plain.tobytes(), components
        trained = outputs_of(decoder, with_base_in(params, compute.dtype), inputs)
        assert np.abs(trained.hidden - expected.hidden).max() > 0.1, components


@pytest.fixture(scope="module")
def adapted():
    """The decoder of MKA with random weights, every adapter at work."""
    decoder = tiny_decoder()
    return decoder, random_params(decoder)


@pytest.fixture(scope="module")
def whole(adapted):
    """Its outputs for full rows of one sequence each."""
    return outputs_of(*adapted, random_inputs())


def test_a_packed_sequence_has_the_states_that_it_has_alone(adapted):
    lengths = (4, 5, 2)
    tokens = random_inputs().tokens[0]
    packed = Inputs(
        tokens[None],
        jnp.concatenate([jnp.arange(n, dtype=jnp.int32) for n in lengths])[None],
        jnp.repeat(jnp.array([1, 2, 3]), jnp.array(lengths), total_repeat_length=LENGTH)[None],
    )
    together = outputs_of(*adapted, packed).hidden[0]
    start = 0
    for n in lengths:
        alone = jax.tree.map(lambda x: jnp.zeros((1, LENGTH), jnp.int32), packed)
        row = Inputs(tokens[start : start + n], jnp.arange(n), jnp.ones(n, jnp.int32))
        alone = jax.tree.map(lambda blank, x, n=n: blank.at[0, :n].set(x), alone, row)
        hidden = outputs_of(*adapted, alone).hidden[0, :n]
        np.testing.assert_allclose(together[start : start + n], hidden, rtol=0, atol=1e-6)
        start += n


def test_without_segments_packed_sequences_would_see_each_other(adapted, whole):
    """The control: the same row as one sequence has other states after the first four tokens."""
    inputs = random_inputs()
    segments = inputs.segments.at[:, 4:].set(2)
    cut = outputs_of(*adapted, inputs._replace(segments=segments)).hidden
    np.testing.assert_allclose(cut[:, :4], whole.hidden[:, :4], rtol=0, atol=1e-6)
    assert np.abs(cut[:, 4:] - whole.hidden[:, 4:]).max(axis=(1, 2)).min() > 0.1


def test_a_token_sees_nothing_after_it(adapted, whole):
    inputs = random_inputs()
    changed = inputs._replace(tokens=inputs.tokens.at[:, 6].add(1) % 98)
    hidden = outputs_of(*adapted, changed).hidden
    np.testing.assert_array_equal(hidden[:, :6], whole.hidden[:, :6])
    assert np.abs(hidden[:, 6:] - whole.hidden[:, 6:]).max(axis=-1).min() > 1e-3


@functools.partial(jax.jit, static_argnums=0)
def extend(decoder, params, inputs, cache):
    """Hidden states of new tokens, and the cache with them in it."""
    hidden, new = decoder.apply({"params": params}, *inputs, cache)
    return hidden, write_slots(cache, inputs.positions, new)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_prefill_and_single_steps_equal_the_whole_row(family):
    decoder = tiny_decoder(family, MKA_COMPONENTS if family == "qwen2" else NO_ADAPTERS)
    params, inputs = random_params(decoder), random_inputs()
    cache = make_cache(TINY[family], ROWS, LENGTH + 2, jnp.float32)
    hidden, cache = extend(decoder, params, Inputs(*(x[:, :6] for x in inputs)), cache)
    parts = [hidden]
    for i in range(6, LENGTH):
        one = Inputs(*(x[:, i : i + 1] for x in inputs))
        hidden, cache = extend(decoder, params, one, cache)
        parts.append(hidden)
    expected = outputs_of(decoder, params, inputs).hidden
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, **EXACT)
    assert cache.segments.tolist() == [[1] * LENGTH + [0] * 2] * ROWS


def test_rows_of_unequal_length_go_on_where_they_ended(adapted, whole):
    decoder, params = adapted
    inputs, lengths = random_inputs(), 1 + np.arange(ROWS) % 6
    prompt = Inputs(*(x[:, :6] for x in inputs))
    is_prompt = (prompt.positions < lengths[:, None]).astype(jnp.int32)
    cache = make_cache(decoder.settings, ROWS, LENGTH + 2, jnp.float32)
    _, cache = extend(decoder, params, prompt._replace(segments=is_prompt), cache)
    after = jnp.asarray(lengths[:, None], jnp.int32)
    one = Inputs(jnp.take_along_axis(inputs.tokens, after, axis=1), after, jnp.ones_like(after))
    hidden, _ = extend(decoder, params, one, cache)
    np.testing.assert_allclose(hidden[:, 0], whole.hidden[np.arange(ROWS), lengths], **EXACT)


def loss_of(decoder, inputs):
    """Sum of squares of the hidden states of trees: some function that every leaf moves."""

    def loss(learning, frozen):
        hidden = decoder.apply({"params": trees.merge({**frozen, **learning})}, *inputs)
        return jnp.mean(hidden.astype(jnp.float32)[..., ::2] ** 2)

    return loss


def test_what_the_backward_pass_recomputes_does_not_change_gradients():
    gradients = {}
    for remat in ("none", "full", "products"):
        compute = dataclasses.replace(FLOAT32, remat=remat)
        decoder = tiny_decoder("qwen2", Components(ffn=(KNOWLEDGE,)), compute)
        parts = trees.split(random_params(decoder))
        base = {"base": parts.pop("base")}
        gradients[remat] = jax.jit(jax.grad(loss_of(decoder, random_inputs())))(parts, base)
    for remat in ("full", "products"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            gradients[remat],
            gradients["none"],
        )
    for path, leaf in trees.flatten(gradients["none"]).items():
        assert np.abs(leaf).max(axis=tuple(range(1, leaf.ndim))).min() > 0, path


@pytest.mark.parametrize("remat", ["full", "products"])
def test_remat_keeps_less_for_the_backward_pass(adapted, remat):
    """The control of the test above: the policies do differ in what they store."""
    decoder, params = adapted
    parts = trees.split(params)
    base = {"base": parts.pop("base")}

    def stored(compute):
        loss = loss_of(decoder.clone(compute=compute), random_inputs())
        return trees.nbytes(jax.eval_shape(lambda: jax.vjp(lambda x: loss(x, base), parts)[1]))

    assert stored(dataclasses.replace(FLOAT32, remat=remat)) < stored(FLOAT32)


def products_of_kernel_shape(gradient, *args) -> int:
    """How many matmuls of a program make an array of a gate's or up's kernel shape [d, f]."""
    found = 0
    queue = [jax.make_jaxpr(gradient)(*args).jaxpr]
    while queue:
        for equation in queue.pop().eqns:
            queue += jaxprs_in_params(equation.params)
            shapes = {out.aval.shape for out in equation.outvars}
            found += equation.primitive.name == "dot_general" and bool(
                shapes & {(20, 36), (36, 20)}
            )
    return found


def test_no_gradient_of_a_base_kernel_is_made_unless_it_is_asked_for(adapted):
    decoder, params = adapted
    parts = trees.split(params)
    loss = loss_of(decoder, random_inputs())
    base = {"base": parts.pop("base")}
    assert products_of_kernel_shape(jax.grad(loss), parts, base) == 0
    assert products_of_kernel_shape(jax.grad(loss, argnums=1), parts, base) == 3


def test_adapters_learn_in_float32_over_a_bfloat16_base(adapted):
    decoder, params = adapted
    decoder = decoder.clone(compute=BFLOAT16)
    parts = trees.split(with_base_in(params, jnp.bfloat16))
    base, inputs = {"base": parts.pop("base")}, random_inputs()
    hidden = jax.eval_shape(
        lambda: decoder.apply({"params": trees.merge({**base, **parts})}, *inputs)
    )
    assert hidden.dtype == jnp.bfloat16
    gradients = jax.eval_shape(jax.grad(loss_of(decoder, inputs)), parts, base)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_logits_are_summed_in_float32(family):
    """bfloat16 products are exact in float32, so only a sum in bfloat16 could differ."""
    decoder = tiny_decoder(family, NO_ADAPTERS, BFLOAT16)
    params = with_base_in(random_params(decoder), jnp.bfloat16)
    hidden = jax.random.normal(jax.random.key(0), (1, 5, 20), jnp.bfloat16)
    logits = decoder.apply({"params": params}, hidden, method="unembed")
    exact = np.asarray(hidden, np.float64) @ np.asarray(output_matrix(params), np.float64)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, rtol=0, atol=1e-6)


def test_dropout_is_on_only_with_an_rng(adapted, whole):
    decoder, params = adapted
    apply = jax.jit(
        lambda key: decoder.apply({"params": params}, *random_inputs(), rngs={"dropout": key})
    )
    one, again, other = (apply(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    assert np.abs(one - whole.hidden).max() > 0.01


def test_every_layer_has_dropout_masks_of_its_own():
    """Equal layers that add next to nothing add the same, unless their masks differ."""
    decoder = tiny_decoder("qwen2", Components(attention=(KNOWLEDGE,)))
    flat = trees.flatten(random_params(decoder))
    for path in [path for path in flat if path.startswith("model/layers/")]:
        silent = "/mlp/" in path or path.endswith(("o_proj/kernel", "lora_b"))
        factor = 1e-3 if path.endswith("o_proj/knowledge/lora_b") else 0.0 if silent else 1.0
        flat[path] = factor * jnp.broadcast_to(flat[path][:1], flat[path].shape)

    @jax.jit
    def added(rngs):
        variables = {"params": trees.unflatten(flat)}
        _, sown = decoder.apply(variables, *random_inputs(), rngs=rngs, mutable=["intermediates"])
        return jnp.diff(sown["intermediates"]["model"]["layers"]["hidden"][0], axis=0)

    first, second = added({})
    assert np.abs(first - second).max() < 0.05 * np.abs(first).max()
    first, second = added({"dropout": jax.random.key(0)})
    assert np.abs(first - second).max() > 0.5 * np.abs(first).max()


def test_router_logits_of_every_layer_are_sown(adapted):
    decoder, params = adapted
    _, sown = jax.eval_shape(
        lambda: decoder.apply({"params": params}, *random_inputs(), mutable=["intermediates"])
    )
    ffn = sown["intermediates"]["model"]["layers"]["mlp"]
    for name in ("gate_proj", "up_proj", "down_proj"):
        assert ffn[name]["noise"]["router_logits"][0].shape == (3, ROWS, LENGTH, 7)
