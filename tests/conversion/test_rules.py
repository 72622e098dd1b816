"""The tables: complete, invertible, and strict both ways."""

import dataclasses

import numpy as np
import pytest

from medcare_jax import params as trees
from medcare_jax.conversion import rules
from medcare_jax.conversion.rules import Op, Rule
from medcare_jax.conversion.tensors import ConversionError, LazyTensor, from_array
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.models.families import FAMILIES
from tests.helpers import TINY, abstract_params, tiny_decoder

SIZES = {"d": 3, "f": 5, "v": 7}
TABLE = (
    Rule("embed.weight", "embed/embedding", Op.COPY, "v d"),
    Rule("layers.{layer}.up.weight", "layers/up/kernel", Op.TRANSPOSE, "d f"),
    Rule("layers.{layer}.norm.weight", "layers/norm/scale", Op.COPY, "d"),
)


def file_tensors() -> dict[str, LazyTensor]:
    random = np.random.default_rng(0)
    names = [name for rule in TABLE for name in rule.sources(2)]
    shapes = [rule.file_shape(SIZES) for rule in TABLE for _ in rule.sources(2)]
    return {
        name: from_array(random.standard_normal(shape))
        for name, shape in zip(names, shapes, strict=True)
    }


def read(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    return rules.to_leaves(TABLE, tensors, sizes=SIZES, num_layers=2, what="FILE")


def write(leaves: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    return rules.to_tensors(TABLE, leaves, sizes=SIZES, num_layers=2, what="TREE")


@pytest.mark.parametrize("family", TINY)
def test_each_table_spells_out_the_decoder(family: str) -> None:
    """Paths and shapes of a table are exactly those of the decoder's own parameters."""
    settings = TINY[family]
    sizes = rules.letter_sizes(settings)
    table = {
        rule.leaf: ((settings.num_layers,) if "{layer}" in rule.source else ())
        + rule.leaf_shape(sizes)
        for rule in rules.decoder_rules(settings)
    }
    decoder = trees.flatten(abstract_params(tiny_decoder(family, NO_ADAPTERS)))
    assert table == {path: leaf.shape for path, leaf in decoder.items()}


def test_every_family_has_a_table() -> None:
    assert rules.TABLES.keys() == FAMILIES.keys()


def test_only_an_untied_model_has_an_output_matrix() -> None:
    for tied in (True, False):
        settings = dataclasses.replace(TINY["qwen2"], tie_word_embeddings=tied)
        names = [rule.source for rule in rules.decoder_rules(settings)]
        assert ("lm_head.weight" in names) == (not tied)


def test_layers_are_stacked_and_weights_transposed() -> None:
    tensors = file_tensors()
    leaves = read(tensors)
    kernel = leaves["layers/up/kernel"]
    assert kernel.shape == (2, 3, 5)
    np.testing.assert_array_equal(kernel[...][1], tensors["layers.1.up.weight"][...].T)
    np.testing.assert_array_equal(leaves["embed/embedding"][...], tensors["embed.weight"][...])


def test_there_and_back_layer_after_layer() -> None:
    tensors = file_tensors()
    back = write(read(tensors))
    assert list(back) == [
        "embed.weight",
        "layers.0.up.weight",
        "layers.0.norm.weight",
        "layers.1.up.weight",
        "layers.1.norm.weight",
    ]
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name][...], tensor[...])


def test_all_differences_are_listed_both_ways() -> None:
    tensors = file_tensors()
    del tensors["layers.1.norm.weight"]
    tensors["layers.2.norm.weight"] = from_array(np.zeros(3))
    tensors["layers.0.up.weight"] = from_array(np.zeros((3, 5)))
    with pytest.raises(ConversionError) as error:
        read(tensors)
    assert str(error.value).splitlines() == [
        "FILE: 1 missing (-), 1 unexpected (+), 1 of another shape (!), of 5 expected",
        "  ! layers.0.up.weight expected [5, 3], found [3, 5]",
        "  - layers.1.norm.weight [3]",
        "  + layers.2.norm.weight [3]",
    ]


def test_differences_fit_one_screen() -> None:
    extra = {f"x{number}": from_array(np.zeros(1)) for number in range(500)}
    with pytest.raises(ConversionError, match="500 unexpected") as error:
        read(file_tensors() | extra)
    lines = str(error.value).splitlines()
    assert (len(lines), lines[-1]) == (32, "  ... and 470 more")


def test_a_leaf_of_another_depth_is_refused() -> None:
    leaves = read(file_tensors())
    leaves["layers/up/kernel"] = from_array(np.zeros((3, 3, 5)))
    with pytest.raises(ConversionError, match=r"expected \[2, 3, 5\], found \[3, 3, 5\]"):
        write(leaves)


def test_layers_of_different_dtypes_are_refused() -> None:
    tensors = file_tensors()
    tensors["layers.1.norm.weight"] = from_array(np.zeros(3, np.float16))
    with pytest.raises(ConversionError, match="float16 in some layers and float64 in others"):
        read(tensors)
