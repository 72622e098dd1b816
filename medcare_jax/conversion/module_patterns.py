"""Regular expressions on names of modules, as a PEFT config has them: never trusted to end.

Some take time that doubles with every letter of a name, and `re`, which PEFT matches them with,
cannot be stopped. `regex` reads the same language and stops after a stated time.
"""

import re
import time

import regex

from medcare_jax.fields import FieldError

# Of processor time, for all names of a model; a pattern for each of 560 modules takes two of them.
_SECONDS = 20.0
# Reading an expression takes a time of its own, in which nothing can be stopped.
_MOST_CHARACTERS = 10_000


class Patterns:
    """Compares names of modules with the expressions of one config, for a limited time in all."""

    def __init__(self) -> None:
        self._end = time.process_time() + _SECONDS
        self._compiled: dict[str, regex.Pattern[str]] = {}

    def matches(self, pattern: str, module: str, *, field: str) -> bool:
        r"""Whether an expression describes a whole name.

        Args:
          pattern: The expression.
          module: The name.
          field: Where the expression stands, for the error.

        Raises:
          FieldError: It is none, it is too long, or the time is over.

        >>> Patterns().matches(r".*\.(q|v)_proj", "model.layers.0.q_proj", field="target_modules")
        True
        """
        if pattern not in self._compiled:
            self._compiled[pattern] = _compile(pattern, field)
        left = self._end - time.process_time()
        try:  # without time left, it would not stop at all
            return bool(self._compiled[pattern].fullmatch(module, timeout=max(left, 1e-3)))
        except TimeoutError:
            raise FieldError(
                f"{field} could not be compared with the names of the modules within "
                f"{_SECONDS:.0f} seconds; expected names, or an expression without repeats in "
                "repeats"
            ) from None


def _compile(pattern: str, field: str) -> "regex.Pattern[str]":
    """An expression ready for use, if PEFT could read it too."""
    if len(pattern) > _MOST_CHARACTERS:
        raise FieldError(
            f"{field} has an expression of {len(pattern)} characters, expected at most "
            f"{_MOST_CHARACTERS}; list the names of the modules"
        )
    try:
        re.compile(pattern)
        return regex.compile(pattern)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise FieldError(
            f"{field} has {pattern[:80]!r}, expected the name of a module or a regular expression "
            f"({error})"
        ) from None
