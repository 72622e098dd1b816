import jax
import jax.numpy as jnp
import pytest

from medcare_jax.orthogonality.leaves import (
    leaves_by_path,
    map_with_path,
    matched_bases,
    oriented,
    protected_names,
)


def test_paths_are_slash_separated_and_name_every_leaf():
    tree = {"mlp": {"up_proj": {"lora_a": jnp.ones(1), "lora_b": jnp.ones(2)}}, "list": [3.0]}
    assert list(leaves_by_path(tree)) == ["list/0", "mlp/up_proj/lora_a", "mlp/up_proj/lora_b"]
    assert map_with_path(lambda path, _: path, tree)["list"] == ["list/0"]


def test_only_lora_b_is_turned_and_turning_twice_restores():
    leaf = jnp.arange(24.0).reshape(2, 3, 4)
    assert oriented("x/lora_a", leaf) is leaf
    assert oriented("lora_b", leaf).shape == (2, 4, 3)
    assert (oriented("lora_b", oriented("lora_b", leaf)) == leaf).all()
    assert oriented("lora_b/other", leaf) is leaf


def test_side_names():
    assert protected_names("both") == ("lora_a", "lora_b")
    with pytest.raises(ValueError, match="'left'"):
        protected_names("left")


def test_missing_basis_names_every_path_and_the_remedy():
    tree = {"up": {"lora_a": jnp.ones((3, 2)), "lora_b": jnp.ones((2, 5))}}
    with pytest.raises(ValueError, match=r"2 leaves.*'up/lora_a', 'up/lora_b'.*extend_basis"):
        matched_bases(tree, {"down": tree["up"]})


@pytest.mark.parametrize("shape", [(5, 1), (2, 3, 1), (1,)])
def test_basis_of_the_wrong_shape_is_refused_by_path(shape):
    with pytest.raises(ValueError, match=r"up/lora_a: expected .*\(3, 'q'\).*got"):
        matched_bases({"up": {"lora_a": jnp.ones((3, 2))}}, {"up": {"lora_a": jnp.ones(shape)}})


def test_surplus_bases_and_masked_updates_are_fine():
    basis = {"up": {"lora_a": jnp.ones((3, 1))}, "down": {"lora_a": jnp.ones((4, 1))}}
    updates = {"up": {"lora_a": jnp.ones((3, 2))}, "down": {"lora_a": None}}
    assert jax.tree.map(jnp.shape, matched_bases(updates, basis)) == {"up/lora_a": (3, 1)}
