"""Results as the runner writes them, with numbers to choose."""

from typing import Any

GEOMETRY = {
    "angles": {
        when: {"median_cosine": 0.5, "largest_cosine": 0.75, "overlap": 0.125}
        for when in ("before", "after")
    }
    | {"random": 0.0625},
    "bases": {"span": {"width": 0.25, "overlap": 0.5, "effect_removed": 0.125}},
}


def task(kind: str, outcomes: list[int], nll: float) -> dict[str, Any]:
    score = sum(outcomes) / len(outcomes)
    return {"kind": kind, "metric": "m", "score": score, "outcomes": outcomes, "nll": nll}


def result(
    cell: str,
    seed: int,
    *,
    known: list[int],
    written: list[int],
    nll: float = 1.0,
    written_nll: float = 0.25,
    leak: float | None = 1e-7,
) -> dict[str, Any]:
    """After MKA everything was known, at a NLL of 0.5, and nothing written."""
    found: dict[str, Any] = {
        "seed": seed,
        "cell": cell,
        "mka": {
            "facts": task("knowledge-intensive", [1] * len(known), 0.5),
            "notes": task("alignment-required", [0] * len(written), 3.0),
        },
        "after": {
            "facts": task("knowledge-intensive", known, nll),
            "notes": task("alignment-required", written, written_nll),
        },
    }
    return found if leak is None else {**found, "leak": leak, "width": 0.25}


def five_seeds() -> list[dict[str, Any]]:
    """A baseline that forgets half and one that forgets a quarter, over seeds of some spread."""
    return [
        result(
            name,
            seed,
            known=[1] * right + [0] * (8 - right),
            written=[1, 1, 0, seed % 2],
            written_nll=nll,
        )
        for seed in range(5)
        for name, right, nll in (("none", 4 - seed % 2, 0.25), ("projection", 6 - seed % 2, 0.5))
    ]
