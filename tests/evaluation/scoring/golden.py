"""The golden scoring files."""

import json


def lines(path):
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def document(path):
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
