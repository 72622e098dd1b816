import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.orthogonality import overlap_penalty, project_tree, subspace_penalty
from medcare_jax.orthogonality.subspace import orthonormal_basis


def lora(seed, *stack, d=7, r=3, out=5):
    random = np.random.default_rng(seed)
    shapes = {"lora_a": (*stack, d, r), "lora_b": (*stack, r, out)}
    return {name: jnp.asarray(random.normal(size=n), jnp.float32) for name, n in shapes.items()}


def reference_trees(tensors):
    """The knowledge and alignment trees of a reference checkpoint of stage 2."""
    trees = {"base": {}, "orth": {}}
    for name, tensor in tensors.items():
        projection, kind, factor, _ = name.rsplit(".", 3)
        leaf = {"lora_A": "lora_a", "lora_B": "lora_b"}[factor]
        array = jnp.asarray(np.asarray(tensor, np.float32).T)
        trees[kind].setdefault(projection, {})[leaf] = array
    return trees["base"], trees["orth"]


@pytest.fixture(scope="module")
def golden(shared):
    torch = pytest.importorskip("torch")
    numpy_files = pytest.importorskip("safetensors.numpy")
    folder = shared / "golden" / "da"
    tensors = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    return reference_trees(tensors), numpy_files.load_file(folder / "io.safetensors")


@pytest.mark.torch
def test_golden_penalty_of_each_projection_and_in_total(golden):
    (knowledge, alignment), expected = golden
    assert len(knowledge) == 9
    for projection in knowledge:
        one = overlap_penalty({"p": knowledge[projection]}, {"p": alignment[projection]})
        np.testing.assert_allclose(one, expected[f"penalty.{projection}"], rtol=1e-5)
    total = overlap_penalty(knowledge, alignment)
    np.testing.assert_allclose(total, expected["orthogonal_loss"], rtol=1e-5)


@pytest.mark.torch
def test_golden_penalty_does_not_depend_on_stacking(golden):
    (knowledge, alignment), expected = golden

    def stacked(tree):
        layers = [
            {name.rsplit(".", 1)[1]: leaf for name, leaf in tree.items() if f".{i}." in name}
            for i in range(3)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)

    total = overlap_penalty(stacked(knowledge), stacked(alignment))
    np.testing.assert_allclose(total, expected["orthogonal_loss"], rtol=1e-5)


@pytest.mark.torch
def test_golden_gradients_of_both_trees(golden):
    trees, expected = golden
    gradients = jax.grad(lambda both: overlap_penalty(*both))(trees)
    for kind, tree in zip(("base", "orth"), gradients, strict=True):
        for projection, leaves in tree.items():
            for leaf, factor in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
                name = f"{projection}.{kind}.{factor}.weight"
                difference = expected[f"grad_total.{name}"] - expected[f"grad_nll.{name}"]
                scale = max(np.abs(expected[f"grad_total.{name}"]).max(), 1e-30)
                np.testing.assert_allclose(
                    leaves[leaf], difference.T, rtol=1e-5, atol=1e-5 * scale, err_msg=name
                )
        assert any(np.abs(leaves["lora_a"]).max() > 0.1 for leaves in tree.values())


@pytest.mark.torch
@pytest.mark.parametrize("case", ["orth_default", "orth_rslora_bias", "orth_bf16"])
def test_golden_single_layers(shared, case):
    files = pytest.importorskip("safetensors.torch")
    tensors = files.load_file(shared / "golden" / "modules" / f"{case}.safetensors")
    adapters = {
        name.replace("param.", "linear."): tensor.numpy()
        for name, tensor in tensors.items()
        if name.startswith("param.") and "lora" in name
    }
    penalty = overlap_penalty(*reference_trees(adapters))
    np.testing.assert_allclose(penalty, tensors["orthogonal_loss"].item(), rtol=1e-5)


@pytest.mark.parametrize("side", ["input", "output", "both"])
@pytest.mark.parametrize("norm", ["l1", "frobenius"])
def test_sums_over_layers_projections_and_sides_in_float64(norm, side):
    knowledge = {"up": lora(0, 2), "down": lora(1, 4, d=6)}
    alignment = {"up": lora(2, 2, r=4), "down": lora(3, 4, d=6, r=2)}
    power = {"l1": 1, "frobenius": 2}[norm]
    expected = 0.0
    for name in knowledge:
        k, o = (
            {leaf: np.asarray(x, np.float64) for leaf, x in tree[name].items()}
            for tree in (knowledge, alignment)
        )
        if side != "output":
            gram = np.einsum("ldr,lds->lrs", k["lora_a"], o["lora_a"])
            expected += np.sum(np.abs(gram) ** power)
        if side != "input":
            gram = np.einsum("lro,lso->lrs", k["lora_b"], o["lora_b"])
            expected += np.sum(np.abs(gram) ** power)
    actual = overlap_penalty(knowledge, alignment, norm=norm, side=side)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_only_common_projections_count():
    alignment = {"up": lora(1), "attention": lora(2)}
    alone = overlap_penalty({"up": lora(0)}, {"up": alignment["up"]})
    both = overlap_penalty({"up": lora(0), "down": lora(3)}, alignment)
    assert float(alone) == float(both)


def test_complement_has_no_penalty():
    knowledge = lora(0)
    alignment = project_tree(lora(1), orthonormal_basis(knowledge))
    for norm in ("l1", "frobenius", "cosine"):
        assert float(overlap_penalty(knowledge, alignment, norm=norm)) < 1e-5


def test_directions_that_a_stack_pads_with_do_not_count():
    tree = {"lora_a": jnp.array([[1.0], [0.0], [0.0]])}
    narrow, wide = ({"lora_a": jnp.eye(3, 1)}, {"lora_a": jnp.eye(3).at[:, 1:].set(0.0)})
    for norm in ("l1", "frobenius", "cosine"):
        assert float(subspace_penalty(tree, wide, norm=norm)) == 1.0
        assert float(subspace_penalty(tree, narrow, norm=norm)) == 1.0


def test_cosine_is_scale_free_in_unit_range_and_finite_at_zero():
    knowledge, alignment = lora(0), lora(1)
    penalty = lambda k, o: overlap_penalty(k, o, norm="cosine")
    scaled = jax.tree.map(lambda x: 1e3 * x, alignment)
    value = penalty(knowledge, alignment)
    assert 0.0 < float(value) < 1.0
    np.testing.assert_allclose(penalty(knowledge, scaled), value, rtol=1e-5)
    assert float(penalty({"lora_a": jnp.eye(3)[:, :1]}, {"lora_a": -2 * jnp.eye(3)[:, :1]})) == 1.0
    zeros = jax.tree.map(jnp.zeros_like, alignment)
    value, gradient = jax.value_and_grad(penalty, argnums=1)(knowledge, zeros)
    assert float(value) == 0.0
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("norm", ["l1", "frobenius", "cosine"])
def test_descending_the_gradient_lowers_the_penalty(norm):
    knowledge, alignment = lora(0), lora(1)
    loss = lambda o: overlap_penalty(knowledge, o, norm=norm)
    gradient = jax.jit(jax.grad(loss))(alignment)
    step = 1e-3 / max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda x, g: x - step * g, alignment, gradient)
    assert float(loss(moved)) < float(loss(alignment))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="found none"):
        overlap_penalty({"up": lora(0)}, {"down": lora(1)})
    with pytest.raises(ValueError, match="differ in rank only"):
        overlap_penalty(lora(0), lora(1, d=8))
    with pytest.raises(ValueError, match="'l2'"):
        overlap_penalty(lora(0), lora(1), norm="l2")


@pytest.mark.parametrize("norm", ["l1", "frobenius", "cosine"])
def test_on_a_basis_it_is_the_overlap_with_the_basis_as_knowledge(norm):
    knowledge, alignment = {"up": lora(0, 2)}, {"up": lora(1, 2)}
    basis = orthonormal_basis(knowledge, side="both")
    factors = jax.tree.map(lambda q: q, basis)
    factors["up"]["lora_b"] = jnp.swapaxes(basis["up"]["lora_b"], -1, -2)
    found = subspace_penalty(alignment, basis, norm=norm)
    expected = overlap_penalty(factors, alignment, norm=norm, side="both")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(subspace_penalty(project_tree(alignment, basis), basis, norm=norm)) < 1e-4


def test_on_a_basis_the_gradient_lies_inside_and_unconstrained_leaves_have_none():
    alignment, basis = lora(1), orthonormal_basis(lora(0))
    gradient = jax.grad(lambda tree: subspace_penalty(tree, basis))(alignment)
    assert float(jnp.abs(project_tree(gradient, basis)["lora_a"]).max()) < 1e-5
    assert float(jnp.abs(gradient["lora_a"]).max()) > 0.1
    assert not gradient["lora_b"].any()
    with pytest.raises(ValueError, match="'l2'"):
        subspace_penalty(alignment, basis, norm="l2")
