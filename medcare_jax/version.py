"""The version of the package, read by the build and by everything that signs a file."""

__version__ = "0.1.0"
