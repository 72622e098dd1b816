"""The benchmark's random model is a model of its architecture, finite, and of any length."""

import dataclasses
import pathlib

import jax
import numpy as np

from medcare_jax.conversion import load_base
from medcare_jax.conversion.rules import decoder_rules, letter_sizes
from medcare_jax.conversion.synthetic import SEVEN_BILLION, write_model
from tests.helpers import TINY


def test_a_small_one(tmp_path: pathlib.Path) -> None:
    nbytes = write_model(tmp_path / "model", TINY["qwen2"], layers=5)
    settings, params = load_base(tmp_path / "model")
    assert settings == dataclasses.replace(TINY["qwen2"], num_layers=5)
    leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(params)]
    assert sum(leaf.size for leaf in leaves) * 2 == nbytes
    for leaf in leaves:
        assert 2**-8 < np.abs(leaf).min() <= np.abs(leaf).max() < 4


def test_seven_billion() -> None:
    sizes = letter_sizes(SEVEN_BILLION)
    count = sum(
        int(np.prod(rule.leaf_shape(sizes))) * len(rule.sources(32))
        for rule in decoder_rules(SEVEN_BILLION)
    )
    assert 7.7e9 < count < 7.8e9
