"""Split and merge are inverses that copy nothing; digests see every bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcare_jax.models.aggregators import DA_ATTENTION_COMPONENTS, MKA_COMPONENTS, NO_ADAPTERS
from medcare_jax.params import count, digest, flatten, merge, nbytes, split, unflatten
from tests.helpers import abstract_params, tiny_decoder

NAMES = st.sampled_from(["model", "layers", "mlp", "kernel", "lora_a", "3", "a b"])
TREES = st.recursive(
    st.integers(), lambda child: st.dictionaries(NAMES, child, min_size=1, max_size=3)
).filter(lambda tree: isinstance(tree, dict))


@given(TREES)
def test_flatten_and_unflatten_are_inverses(tree):
    flat = flatten(tree)
    assert unflatten(flat) == tree
    assert list(flat) == sorted(flat)
    assert not any(isinstance(leaf, dict) for leaf in flat.values())


@pytest.mark.parametrize(
    ("components", "names"),
    [
        (NO_ADAPTERS, ["base"]),
        (MKA_COMPONENTS, ["base", "knowledge", "noise"]),
        (DA_ATTENTION_COMPONENTS, ["base", "knowledge", "alignment"]),
    ],
)
def test_split_and_merge_are_inverses_and_copy_nothing(components, names):
    params = abstract_params(tiny_decoder("qwen2", components))
    parts = split(params)
    assert list(parts) == names
    assert merge(parts) == params
    before, after = flatten(params), flatten(merge(parts))
    assert all(before[path] is after[path] for path in before)
    assert sum(count(part) for part in parts.values()) == count(params)


def test_component_names_are_not_in_the_paths_of_their_trees():
    parts = split(abstract_params(tiny_decoder("qwen2", DA_ATTENTION_COMPONENTS)))
    knowledge, alignment = flatten(parts["knowledge"]), flatten(parts["alignment"])
    assert "model/layers/mlp/gate_proj/lora_a" in knowledge
    assert {path for path in alignment if "/mlp/" in path} == set(knowledge)
    assert not any("lora" in path for path in flatten(parts["base"]))


def test_merge_refuses_a_tree_that_is_no_component():
    with pytest.raises(ValueError, match="'align' is none of base, knowledge, noise, alignment"):
        merge({"base": {"kernel": 1}, "align": {"lora_a": 2}})


def test_count_and_nbytes():
    tree = {"a": np.zeros((3, 5), np.float32), "b": jax.ShapeDtypeStruct((7,), jnp.bfloat16)}
    assert count(tree) == 22
    assert nbytes(tree) == 74
    assert count({"scalar": np.zeros(())}) == 1


def test_a_digest_knows_nothing_of_order_or_kind_of_array():
    ours = {"b": {"c": jnp.arange(3.0)}, "a": jnp.ones((2, 5), jnp.bfloat16)}
    same = {"a": np.ones((2, 5), jnp.bfloat16), "b": {"c": np.arange(3, dtype=np.float32)}}
    assert digest(ours) == digest(same)
    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert digest({"a": columns}) == digest({"a": np.ascontiguousarray(columns)})


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.array([[1.0, 2.0]], np.float32)},
        {"a": np.array([1.0, 2.0], np.float64)},
        {"a": np.array([1.0, 2.0], np.float32).view(np.int32)},
        {"a": np.array([1.0, np.nextafter(np.float32(2), 3)], np.float32)},
        {"b": np.array([1.0, 2.0], np.float32)},
        {"a": np.array([1.0, 2.0], np.float32), "b": np.zeros((0,), np.float32)},
    ],
    ids=["shape", "width", "dtype", "last bit", "path", "an empty leaf"],
)
def test_a_digest_changes_with(other):
    assert digest(other) != digest({"a": np.array([1.0, 2.0], np.float32)})


def test_a_scalar_is_not_a_vector_of_one():
    assert digest({"a": np.zeros(())}) != digest({"a": np.zeros(1)})
