"""Continuing prompts token by token."""
