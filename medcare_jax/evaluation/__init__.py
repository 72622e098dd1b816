"""Scoring a model on tasks, and the report of a run."""
