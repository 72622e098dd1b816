"""Which directions count and are kept, by hand."""

import jax
import jax.numpy as jnp
import pytest

from medcare_jax.orthogonality.selection import check_energy, checked, counts, keep, reaches

ENERGIES = jnp.array([[6.0, 3.0, 1.0], [4.0, 4.0, 2.0]])


def test_values_count_above_the_tolerance_and_nan_does():
    values = jnp.array([1.0, 1e-3, 1e-6, jnp.nan])
    assert counts(values, 1e-4).tolist() == [True, True, False, True]
    assert counts(jnp.zeros(2), 1e-4).tolist() == [False, False]


@pytest.mark.parametrize(
    ("energy", "unseen", "expected"),
    [
        (0.6, 0.0, [[1, 0, 0], [1, 1, 0]]),
        (0.95, 0.0, [[1, 1, 1], [1, 1, 1]]),
        (0.4, 0.0, [[1, 0, 0], [1, 0, 0]]),
        (0.4, 10.0, [[1, 1, 0], [1, 1, 0]]),  # 8 of the 20 that there are now
        (0.9, 10.0, [[1, 1, 1], [1, 1, 1]]),  # more than all of them hold
    ],
)
def test_as_many_are_needed_as_hold_the_share_of_the_whole(energy, unseen, expected):
    assert reaches(ENERGIES, energy, unseen=unseen).astype(int).tolist() == expected


def test_kept_columns_are_cut_to_the_widest_of_the_stack_where_values_are_known():
    vectors = jnp.broadcast_to(jnp.eye(3), (2, 3, 3))
    is_kept = jnp.array([[True, True, False], [True, False, False]])
    kept = keep(vectors, is_kept)
    assert kept.shape == (2, 3, 2)
    assert kept[1].tolist() == [[1, 0], [0, 0], [0, 0]]
    assert jax.eval_shape(keep, vectors, is_kept).shape == (2, 3, 3)


def test_what_no_subspace_comes_from_is_refused():
    assert checked("a", jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match="a/b: expected finite values"):
        checked("a/b", jnp.array([1.0, jnp.inf]))
    for energy in (0.0, 1.1):
        with pytest.raises(ValueError, match="energy share"):
            check_energy(energy)
