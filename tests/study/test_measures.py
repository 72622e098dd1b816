"""Angles and effects on trees whose answer is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.params import ALIGNMENT, KNOWLEDGE
from medcare_jax.study.measures import ENERGIES, geometry, overlap_with_knowledge

D = 8


def lora(columns, out=3):
    """One layer of up_proj whose A has these unit vectors as columns."""
    lora_a = jnp.asarray(np.eye(D)[None, :, columns], jnp.float32)
    return {"up_proj": {"lora_a": lora_a, "lora_b": jnp.ones((1, len(columns), out))}}


def found(start, alignment, knowledge, energies):
    covariance = {"up_proj": {"lora_a": jnp.diag(jnp.asarray(energies, jnp.float32))[None]}}
    return geometry(start, alignment, knowledge, covariance)


def test_angles_before_and_after_and_of_random_subspaces():
    angles = found(lora([4, 5]), lora([0, 5]), lora([0, 1]), np.ones(D))["angles"]
    assert angles["before"] == {"median_cosine": 0.0, "largest_cosine": 0.0, "overlap": 0.0}
    assert angles["after"] == pytest.approx(
        {"median_cosine": 1.0, "largest_cosine": 1.0, "overlap": 0.5}
    )
    assert angles["random"] == 2 / D


def test_a_small_angle_to_the_span_may_still_carry_most_of_the_effect():
    # The alignment reads axis 0, where the data has little, and axis 5, where it has much.
    energies = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 99.0, 0.0, 0.0])
    bases = found(lora([0, 5]), lora([0, 5]), lora([0, 1]), energies)["bases"]
    assert set(bases) == {"span", "svd 0.95", *(f"activation {e:g}" for e in ENERGIES)}
    assert bases["span"]["effect_removed"] == pytest.approx(1 - np.sqrt(99 / 100), abs=1e-6)
    assert bases["activation 0.9"]["effect_removed"] == pytest.approx(1 - np.sqrt(1 / 100))
    assert (bases["span"]["width"], bases["activation 0.9"]["width"]) == (2 / D, 1 / D)
    assert bases["span"]["overlap"] == pytest.approx(0.5)


def test_an_alignment_without_effect_has_none_to_remove():
    silent = {"up_proj": {**lora([0, 5])["up_proj"], "lora_b": jnp.zeros((1, 2, 3))}}
    bases = found(silent, silent, lora([0, 1]), np.ones(D))["bases"]
    assert {each["effect_removed"] for each in bases.values()} == {0.0}


def test_the_overlap_is_with_the_span_of_the_ffns_knowledge():
    trees = {KNOWLEDGE: lora([0, 1]), ALIGNMENT: {**lora([0, 5]), "q_proj": lora([2])["up_proj"]}}
    numbers = overlap_with_knowledge(trees)
    assert numbers["cosine"] == pytest.approx(1.0)
    assert numbers["overlap"] == pytest.approx(0.5)
    assert numbers["rank"] == pytest.approx(1.0)
