"""MedCare in JAX: knowledge aggregation, then alignment that cannot touch it."""

from medcare_jax.version import __version__

__all__ = ["__version__"]
