"""The aliases mean what the legend says."""

import re

import jax.numpy as jnp
import jaxtyping

from medcare_jax import shapes
from medcare_jax.shapes import AttentionMask, Hidden, Keys, Tokens


def test_every_letter_of_an_alias_is_in_the_legend():
    legend = set(re.findall(r"\b([a-z]) [a-z]", shapes.__doc__.partition("\n")[2]))
    assert legend == set("btsdfnkhvreql")
    arrays = [getattr(shapes, name) for name in shapes.__all__ if name != "Params"]
    assert len(arrays) == 9
    for alias in arrays:
        assert set(alias.dim_str.split()) <= legend, alias


def test_all_public_names_are_listed_in_order():
    public = {
        name
        for name, value in vars(shapes).items()
        if isinstance(value, type) and issubclass(value, jaxtyping.AbstractArray)
    }
    assert public | {"Params"} == set(shapes.__all__)
    assert list(shapes.__all__) == sorted(shapes.__all__)


def test_aliases_tell_dtypes_and_ranks_apart():
    tokens = jnp.zeros((2, 3), jnp.int32)
    assert isinstance(tokens, Tokens)
    assert not isinstance(tokens.astype(jnp.float32), Tokens)
    assert not isinstance(tokens[0], Tokens)
    assert isinstance(jnp.zeros((2, 3, 5), jnp.bfloat16), Hidden)
    assert not isinstance(jnp.zeros((2, 3, 5)), Keys)
    assert isinstance(jnp.zeros((2, 3, 5), bool), AttentionMask)
