"""Adapted projections against the reference's numbers and against experts one by one."""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from hypothesis import given, settings
from hypothesis import strategies as st

from medcare_jax import params as trees
from medcare_jax.models.aggregators import AdaptedLinear, NoiseAggregator, route
from medcare_jax.params import ALIGNMENT, KNOWLEDGE, NOISE
from medcare_jax.settings import AdapterSettings, ComputeSettings
from tests.helpers import FLOAT32

FLOAT32_CASES = [
    "molora_default",
    "molora_noshare",
    "molora_rslora_bias",
    "molora_single",
    "molora_top1",
    "orth_default",
    "orth_rslora_bias",
]


class Golden(NamedTuple):
    """One layer of the reference: our module for it, our parameters, its arrays by name."""

    layer: AdaptedLinear
    params: dict[str, Any]
    arrays: dict[str, jax.Array]


def load_golden(shared: pathlib.Path, name: str) -> Golden:
    folder = shared / "golden" / "modules"
    case = json.loads((folder / "cases.json").read_text())[name]
    arrays = safetensors.flax.load_file(folder / f"{name}.safetensors")
    params = adapters_of(arrays, "param")
    params["kernel"] = arrays["param.weight"].T
    if case["bias"]:
        params["bias"] = arrays["param.bias"]
    if name == "molora_single":  # the reference has no router here, and no use for the shared
        del params[KNOWLEDGE]
        router = np.ones((case["n_in"] + 1, 1), np.float32)
        params[NOISE] |= {"router_kernel": router[:-1], "router_bias": router[-1]}
    layer = AdaptedLinear(
        features=case["n_out"],
        components=tuple(c for c in (KNOWLEDGE, NOISE, ALIGNMENT) if c in params),
        is_attention=False,
        use_bias=case["bias"],
        adapters=AdapterSettings(
            rank=case["r"],
            alpha=case["lora_alpha"],
            use_rslora=case["use_rslora"],
            shared_experts=case.get("num_share_experts", 2),
            experts=case.get("num_experts", 1),
            experts_per_token=case.get("num_experts_per_token", 1),
        ),
        compute=ComputeSettings(dtype=case["dtype"], adapter_dtype="float32"),
    )
    assert layer.adapters.scale == pytest.approx(case["scaling"])
    return Golden(layer, params, arrays)


def adapters_of(arrays: dict[str, jax.Array], prefix: str) -> dict[str, Any]:
    """The reference's adapter weights or their gradients, in our tree; absent ones left out."""
    flat = {}
    for ours, theirs in {
        "knowledge": "base" if f"{prefix}.base.lora_A.weight" in arrays else "share_experts",
        "alignment": "orth",
    }.items():
        if f"{prefix}.{theirs}.lora_A.weight" in arrays:
            flat[f"{ours}/lora_a"] = arrays[f"{prefix}.{theirs}.lora_A.weight"].T
            flat[f"{ours}/lora_b"] = arrays[f"{prefix}.{theirs}.lora_B.weight"].T
    experts = sum(f"{prefix}.experts." in name and "lora_A" in name for name in arrays)
    if experts:
        names = [f"{prefix}.experts.{i}.lora_{{}}_{i}.weight" for i in range(experts)]
        flat["noise/lora_a"] = jnp.concatenate([arrays[n.format("A")].T for n in names], axis=1)
        flat["noise/lora_b"] = jnp.concatenate([arrays[n.format("B")].T for n in names], axis=0)
    if f"{prefix}.switch.weight" in arrays:
        flat["noise/router_kernel"] = arrays[f"{prefix}.switch.weight"].T
        flat["noise/router_bias"] = arrays[f"{prefix}.switch.bias"]
    return trees.unflatten(flat)


@functools.partial(jax.jit, static_argnums=0)
def forward(layer: AdaptedLinear, params, x) -> jax.Array:
    """The layer's output."""
    return layer.apply({"params": params}, x)


@functools.partial(jax.jit, static_argnums=0)
def forward_with_logits(layer: AdaptedLinear, params, x) -> tuple[jax.Array, Any]:
    """The layer's output and what it sows."""
    return layer.apply({"params": params}, x, mutable=["intermediates"])


@functools.partial(jax.jit, static_argnums=0)
def gradients(layer: AdaptedLinear, params, x, cotangent):
    """Gradients of sum(y · cotangent) for parameters and input."""
    _, pull = jax.vjp(lambda p, inputs: layer.apply({"params": p}, inputs), params, x)
    return pull(cotangent)


@pytest.mark.parametrize("name", FLOAT32_CASES)
def test_float32_layers_are_the_references(shared, name):
    layer, params, arrays = load_golden(shared, name)
    y, sown = forward_with_logits(layer, params, arrays["x"])
    np.testing.assert_allclose(y, arrays["y"], rtol=0, atol=1e-5)
    if "router_logits" in arrays:
        (logits,) = sown["intermediates"][NOISE]["router_logits"]
        expected = arrays["router_logits"].reshape(logits.shape)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    ours, of_x = gradients(layer, params, arrays["x"], arrays["cotangent"])
    np.testing.assert_allclose(of_x, arrays["grad.x"], rtol=0, atol=1e-5)
    theirs = trees.flatten(adapters_of(arrays, "grad"))
    assert theirs
    ours = trees.flatten(ours)
    for path, expected in theirs.items():
        np.testing.assert_allclose(ours[path], expected, rtol=0, atol=1e-5, err_msg=path)
    learnt = {path for path in ours if path.partition("/")[0] in trees.COMPONENTS}
    for path in learnt - theirs.keys():  # the router of a single expert has nothing to choose
        np.testing.assert_array_equal(ours[path], 0.0, err_msg=path)


def bfloat16_unit(*values: np.ndarray) -> np.ndarray:
    """The last place of a bfloat16 (8 significant bits) as large as the largest, elementwise."""
    return 2.0 ** (np.floor(np.log2(np.max(np.abs(values), axis=0))) - 7)


def exact_terms(params, x, scale: float) -> list[np.ndarray]:
    """Base product and each ungated adapter's delta, in float64."""
    x, params = np.asarray(x, np.float64), jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    names = [name for name in (KNOWLEDGE, ALIGNMENT) if name in params]
    deltas = [scale * (x @ params[n]["lora_a"]) @ params[n]["lora_b"] for n in names]
    return [x @ params["kernel"], *deltas]


def test_the_bfloat16_mixture_is_the_references_to_one_unit(shared):
    """Same casts: x up to float32, delta down, sum in bfloat16. Measured here: equal bit for bit.

    One unit is allowed, since float32 sums in another order may fall on the other side of a tie.
    """
    layer, params, arrays = load_golden(shared, "molora_bf16")
    y = forward(layer, params, arrays["x"])
    assert y.dtype == jnp.bfloat16
    y, expected = np.asarray(y, np.float64), np.asarray(arrays["y"], np.float64)
    base = exact_terms(params, arrays["x"], 0.0)[0]
    assert np.max(np.abs(y - expected) / bfloat16_unit(base, expected - base, expected)) <= 1
    ours, of_x = gradients(layer, params, arrays["x"], arrays["cotangent"])
    theirs = trees.flatten(adapters_of(arrays, "grad"))
    for path, expected in theirs.items():
        np.testing.assert_allclose(
            trees.flatten(ours)[path], expected, rtol=1e-6, atol=1e-5, err_msg=path
        )
    np.testing.assert_allclose(
        np.asarray(of_x, np.float32), np.asarray(arrays["grad.x"], np.float32), rtol=2**-7
    )


def test_the_bfloat16_pair_rounds_less_often_than_the_reference(shared):
    """The reference rounds each delta and each of two sums, we one delta and one sum.

    Half a unit of the largest term each, so the two differ by three units at most, and ours
    is the nearer to the exact value.
    """
    layer, params, arrays = load_golden(shared, "orth_bf16")
    terms = exact_terms(params, arrays["x"], layer.adapters.scale)
    exact, unit = sum(terms), bfloat16_unit(*terms, sum(terms))
    ours = np.asarray(forward(layer, params, arrays["x"]), np.float64)
    theirs = np.asarray(arrays["y"], np.float64)
    assert np.max(np.abs(ours - theirs) / unit) <= 3
    assert np.max(np.abs(ours - exact) / unit) <= 1.5
    assert np.mean(np.abs(ours - exact) / unit) < np.mean(np.abs(theirs - exact) / unit)


TINY = AdapterSettings(
    rank=3, alpha=5.0, shared_experts=2, experts=7, experts_per_token=3, dropout=0.5
)
ROWS, LENGTH, WIDTH, FEATURES = 4, 9, 20, 36


def make_layer(*components: str, is_attention: bool = False) -> AdaptedLinear:
    return AdaptedLinear(
        FEATURES, components, is_attention, use_bias=True, adapters=TINY, compute=FLOAT32
    )


def random_layer_params(layer: AdaptedLinear, seed: int = 0) -> dict[str, Any]:
    """Parameters with every leaf, B included, away from zero."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 1, WIDTH)))["params"]
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * random.standard_normal(x.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(3), (ROWS, LENGTH, WIDTH))


def expert_by_expert(params, x):
    """What MoLoRA means: every expert's output stacked [b, t, e, f], then a gated sum."""
    noise, knowledge = params[NOISE], params[KNOWLEDGE]
    split_a = noise["lora_a"].reshape(WIDTH, TINY.experts, TINY.rank)
    split_b = noise["lora_b"].reshape(TINY.experts, TINY.rank, FEATURES)
    stack = jnp.stack([(x @ split_a[:, e]) @ split_b[e] for e in range(TINY.experts)], axis=2)
    share = jax.nn.softmax(x @ noise["router_kernel"] + noise["router_bias"][None, None])
    least = jnp.sort(share, axis=-1)[..., -TINY.experts_per_token, None]
    kept = jnp.where(share >= least, share, 0.0)
    gates = kept / jnp.sum(kept, axis=-1, keepdims=True)
    delta = jnp.sum(stack * gates[..., None], axis=2)
    delta = delta + (x @ knowledge["lora_a"]) @ knowledge["lora_b"]
    return x @ params["kernel"] + params["bias"][None, None] + TINY.alpha / TINY.rank * delta


def test_the_rank_space_form_is_the_stack_of_experts_with_all_gradients(x):
    layer = make_layer(KNOWLEDGE, NOISE)
    params = random_layer_params(layer)
    cotangent = jax.random.normal(jax.random.key(4), (ROWS, LENGTH, FEATURES))

    @jax.jit
    def both(params, x):
        y, pull = jax.vjp(lambda p, inputs: layer.apply({"params": p}, inputs), params, x)
        expected, expected_pull = jax.vjp(expert_by_expert, params, x)
        return (y, pull(cotangent)), (expected, expected_pull(cotangent))

    ours, expected = both(params, x)
    for leaf, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(leaf, other, rtol=0, atol=2e-6 * np.abs(other).max())


def test_the_stack_of_experts_never_exists(x):
    layer = make_layer(KNOWLEDGE, NOISE)
    params = random_layer_params(layer)
    largest = {}
    for name, forward in {
        "ours": lambda p, inputs: layer.apply({"params": p}, inputs),
        "stack": expert_by_expert,
    }.items():
        equations = jax.make_jaxpr(forward)(params, x).eqns
        largest[name] = max(out.aval.size for eqn in equations for out in eqn.outvars)
    assert largest["stack"] == ROWS * LENGTH * TINY.experts * FEATURES
    assert largest["ours"] == ROWS * LENGTH * FEATURES


@given(st.sampled_from([(1, 1), (2, 1), (4, 4), (7, 3), (8, 2)]), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_gates_are_a_mixture_of_exactly_k_experts(sizes, seed):
    experts, kept = sizes
    logits = 3 * np.random.default_rng(seed).standard_normal((1, 5, experts)).astype(np.float32)
    gates = np.asarray(jax.jit(route, static_argnums=1)(logits, kept))
    np.testing.assert_allclose(gates.sum(axis=-1), 1.0, atol=1e-6)
    assert ((gates > 0).sum(axis=-1) == kept).all()
    chosen = np.argsort(logits, axis=-1)[..., -kept:]
    weights = np.exp(np.take_along_axis(logits, chosen, axis=-1))
    expected = weights / weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.take_along_axis(gates, chosen, axis=-1), expected, atol=1e-6)


def test_equal_logits_still_choose_exactly_k():
    gates = np.asarray(route(jnp.zeros((1, 1, 6)), 2))[0, 0]
    assert sorted(gates.tolist()) == [0.0, 0.0, 0.0, 0.0, 0.5, 0.5]


def test_routing_is_in_float32_whatever_the_inputs_are(x):
    """bfloat16 logits would move gates by 1e-2."""
    module = NoiseAggregator(TINY)
    narrow = x.astype(jnp.bfloat16)
    params = jax.jit(module.init, static_argnums=2)(jax.random.key(0), narrow, FEATURES)
    gates = jax.jit(lambda inputs: module.apply(params, inputs, FEATURES).gates)
    assert gates(narrow).dtype == jnp.float32
    np.testing.assert_array_equal(gates(narrow), gates(narrow.astype(jnp.float32)))


@functools.partial(jax.jit, static_argnums=0)
def apply_with_dropout(layer, params, x, seed: int = 0):
    return layer.apply({"params": params}, x, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("components", [(KNOWLEDGE,), (ALIGNMENT,), (KNOWLEDGE, ALIGNMENT)])
def test_dropout_needs_an_rng(x, components):
    layer = make_layer(*components)
    params = random_layer_params(layer)
    still = forward(layer, params, x)
    np.testing.assert_array_equal(still, forward(layer, params, x))
    one, other = (apply_with_dropout(layer, params, x, seed) for seed in (0, 1))
    assert np.abs(one - still).max() > 0.1
    assert np.abs(one - other).max() > 0.1


def test_a_projection_with_noise_has_no_dropout(x):
    """As in the reference, whose mixture applies none."""
    layer = make_layer(KNOWLEDGE, NOISE)
    params = random_layer_params(layer)
    np.testing.assert_array_equal(apply_with_dropout(layer, params, x), forward(layer, params, x))


def test_the_base_sees_the_whole_input_under_dropout(x):
    layer = make_layer(KNOWLEDGE)
    params = random_layer_params(layer)
    params[KNOWLEDGE]["lora_b"] = jnp.zeros_like(params[KNOWLEDGE]["lora_b"])
    np.testing.assert_array_equal(apply_with_dropout(layer, params, x), forward(layer, params, x))


def test_knowledge_and_alignment_share_one_mask(x):
    """An alignment that undoes the knowledge undoes it under dropout too."""
    layer = make_layer(KNOWLEDGE, ALIGNMENT)
    params = random_layer_params(layer)
    knowledge = params[KNOWLEDGE]
    params[ALIGNMENT] = {"lora_a": knowledge["lora_a"], "lora_b": -knowledge["lora_b"]}
    plain = x @ params["kernel"] + params["bias"][None, None]
    y = apply_with_dropout(layer, params, x)
    np.testing.assert_allclose(y, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("is_attention", "component", "rank"),
    [
        (True, KNOWLEDGE, 3),
        (False, KNOWLEDGE, 6),
        (False, NOISE, 21),
        (True, ALIGNMENT, 6),
        (False, ALIGNMENT, 6),
    ],
)
def test_ranks_differ_and_the_scale_does_not(x, is_attention, component, rank):
    layer = make_layer(component, is_attention=is_attention)
    params = random_layer_params(layer)
    adapter = params[component]
    assert adapter["lora_a"].shape == (WIDTH, rank)
    assert adapter["lora_b"].shape == (rank, FEATURES)
    if component != NOISE:
        delta = forward(layer, params, x) - x @ params["kernel"] - params["bias"][None, None]
        expected = 5.0 / 3.0 * (x @ adapter["lora_a"]) @ adapter["lora_b"]
        np.testing.assert_allclose(delta, expected, rtol=0, atol=1e-5)
