"""Random numbers by name: every contender makes the same weights without a file between them."""

import zlib

import numpy as np
from jaxtyping import Float32, Int32

INITIALIZER_RANGE = 0.02  # standard deviation of base weights, as Hugging Face's


def draw(seed: int, path: str, layer: int, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """One layer of the parameter at a path of our tree, in our orientation.

    Base matrices are uniform with the standard deviation 0.02, norms one, A and router uniform in
    ±1/sqrt(in), B zero, so that training begins where it really does.

    >>> bool((draw(0, "up_proj/kernel", 1, (2, 3)) == draw(0, "up_proj/kernel", 1, (2, 3))).all())
    True
    """
    name = path.rpartition("/")[2]
    if name == "scale":
        return np.ones(shape, np.float32)
    if name == "lora_b":
        return np.zeros(shape, np.float32)
    random = np.random.default_rng([seed, layer, zlib.crc32(path.encode())])
    values = random.random(shape, np.float32)
    reads_input = name in ("lora_a", "router_kernel")
    limit = shape[0] ** -0.5 if reads_input else INITIALIZER_RANGE * 3**0.5
    values -= 0.5
    values *= 2 * limit
    return values


def draw_tokens(seed: int, shape: tuple[int, int], vocab_size: int) -> Int32[np.ndarray, "b t"]:
    """The batch of every step: full rows, every token but a row's first a target."""
    return np.random.default_rng([seed, 1]).integers(0, vocab_size, shape, dtype=np.int32)
