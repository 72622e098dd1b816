"""Peaks that makers state, and the one measured here."""

import jax
import jax.numpy as jnp
import pytest

from medcare_jax.benchmarks.peaks import measured_cpu_peak, measured_peaks, stated_peak


def test_peaks_of_devices():
    assert stated_peak("TPU v5 lite") == 197e12
    assert stated_peak("TPU v5") == 459e12
    assert stated_peak("cpu") is None


def test_the_measured_peak_is_a_rate_of_real_work():
    seconds = jax.jit(jnp.matmul).lower(jnp.ones((8, 8)), jnp.ones((8, 8))).compile()
    assert seconds.cost_analysis()["flops"] >= 2 * 8**3 - 8**2
    assert 1e8 < measured_cpu_peak(1) < 1e13


@pytest.mark.torch
def test_the_same_by_each_library():
    peaks = measured_peaks(1)
    assert set(peaks) == {"jax", "torch", "numpy"}
    assert all(1e8 < peak < 1e13 for peak in peaks.values())
