"""Marks for open answers from a language model at an endpoint that the user names."""
