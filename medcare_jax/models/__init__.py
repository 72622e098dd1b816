"""The Linen decoder and its adapters."""
