"""How fast a device could do arithmetic at the most."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# Dense bfloat16 FLOP/s that the makers state, by a part of the device's kind.
STATED_PEAKS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
_PROBE_WIDTH = 2048


def stated_peak(device_kind: str) -> float | None:
    """A device's FLOP/s as its maker states it; None if it is not in the table.

    >>> stated_peak("NVIDIA H100 80GB HBM3")
    989000000000000.0
    """
    return next((peak for part, peak in STATED_PEAKS.items() if part in device_kind), None)


def measured_cpu_peak(repeats: int = 5) -> float:
    """FLOP per CPU-second of a large float32 matmul here: what a step could reach at most."""
    x = jax.device_put(_square(), jax.devices("cpu")[0])
    product = jax.jit(jnp.matmul)
    return _fastest(lambda: product(x, x).block_until_ready(), repeats)


def measured_peaks(repeats: int = 5) -> dict[str, float]:
    """The same by each library that multiplies here."""
    import torch

    x = _square()
    of_torch = torch.from_numpy(x)
    return {
        "jax": measured_cpu_peak(repeats),
        "torch": _fastest(lambda: torch.matmul(of_torch, of_torch), repeats),
        "numpy": _fastest(lambda: np.matmul(x, x), repeats),
    }


def _square() -> np.ndarray:
    """A matrix large enough that nothing counts but its product."""
    return np.random.default_rng(0).standard_normal((_PROBE_WIDTH, _PROBE_WIDTH), np.float32)


def _fastest(product: Callable[[], object], repeats: int) -> float:
    """FLOP per CPU-second of the fastest of some products, after one that warms up."""
    product()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        product()
        seconds.append(time.process_time() - start)
    return 2 * _PROBE_WIDTH**3 / min(seconds)
