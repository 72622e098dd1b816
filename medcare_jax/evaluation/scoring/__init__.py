"""Answers to scores: pure functions of text, without model or files.

Two sets of rules stand side by side. `reference` gives the numbers of the authors' evaluation code,
its oddities included; `strict` is what we think the numbers should be. docs/evaluation.md has both.
"""

from typing import Literal

Rules = Literal["reference", "strict"]
RULES: tuple[Rules, ...] = ("reference", "strict")
