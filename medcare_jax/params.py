"""Parameter trees: paths, the split into base and adapter trees, counts, bytes and digests.

A model's parameters are one nested dict. Adapter leaves sit beside the kernel they adapt, under
a reserved component:

    model/layers/mlp/gate_proj/kernel               base
    model/layers/mlp/gate_proj/knowledge/lora_a     knowledge
    model/layers/mlp/gate_proj/noise/router_kernel  noise
    model/layers/mlp/gate_proj/alignment/lora_b     alignment

`split` takes them apart and drops the component from the path, so that the knowledge and the
alignment tree of the same projections have the same structure; `merge` puts them together.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from medcare_jax.agreement import fetch

BASE = "base"
KNOWLEDGE = "knowledge"
NOISE = "noise"
ALIGNMENT = "alignment"
COMPONENTS = (KNOWLEDGE, NOISE, ALIGNMENT)

Tree = dict[str, Any]


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path, components joined by `/`, in sorted order.

    >>> flatten({"a": {"c": 1, "b": 2}})
    {'a/b': 2, 'a/c': 1}
    """
    flat = flax.traverse_util.flatten_dict(dict(tree), sep="/")
    return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The nested tree of `flatten`'s result.

    >>> unflatten({'a/b': 2, 'a/c': 1})
    {'a': {'b': 2, 'c': 1}}
    """
    return flax.traverse_util.unflatten_dict(dict(flat), sep="/")


def split(params: Mapping[str, Any]) -> dict[str, Tree]:
    """Takes a model's parameters apart into base and adapter trees.

    Returns:
      A dict with `base` and those of `knowledge`, `noise`, `alignment` that have leaves. The
      component's name is removed from the paths of its tree. No array is copied.

    >>> split({"up_proj": {"kernel": 1, "knowledge": {"lora_a": 2}}})
    {'base': {'up_proj': {'kernel': 1}}, 'knowledge': {'up_proj': {'lora_a': 2}}}
    """
    parts: dict[str, dict[str, Any]] = {}
    for path, leaf in flatten(params).items():
        parent, _, name = path.rpartition("/")
        owner, _, component = parent.rpartition("/")
        if component in COMPONENTS:
            parts.setdefault(component, {})[f"{owner}/{name}"] = leaf
        else:
            parts.setdefault(BASE, {})[path] = leaf
    return {name: unflatten(parts[name]) for name in (BASE, *COMPONENTS) if name in parts}


def merge(trees: Mapping[str, Mapping[str, Any]]) -> Tree:
    """Puts base and adapter trees together; the inverse of `split`.

    Raises:
      ValueError: A tree's name is none of base, knowledge, noise, alignment.

    >>> merge({"base": {"up": {"kernel": 1}}, "noise": {"up": {"lora_a": 2}}})
    {'up': {'kernel': 1, 'noise': {'lora_a': 2}}}
    """
    flat: dict[str, Any] = {}
    for name, tree in trees.items():
        if name == BASE:
            flat.update(flatten(tree))
        elif name in COMPONENTS:
            for path, leaf in flatten(tree).items():
                owner, _, leaf_name = path.rpartition("/")
                flat[f"{owner}/{name}/{leaf_name}"] = leaf
        else:
            raise ValueError(f"tree {name!r} is none of {', '.join((BASE, *COMPONENTS))}")
    return unflatten(flat)


def count(tree: Any) -> int:
    """Number of parameters in a tree of arrays or abstract arrays."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """Bytes that a tree of arrays or abstract arrays takes, whole, on one device."""
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )


def digest(tree: Mapping[str, Any]) -> str:
    """The sha256 over paths, dtypes, shapes and bytes of a tree: equal only if bit-identical.

    Fetches one leaf at a time to the host, so peak memory is the largest leaf. Of several
    processes all have to call it.

    >>> digest({"a": np.zeros(2)}) == digest({"a": -np.zeros(2)})
    False
    """
    total = hashlib.sha256()
    for path, leaf in flatten(tree).items():
        array = np.asarray(fetch(leaf), order="C")
        total.update(f"{path}:{array.dtype}:{array.shape};".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
