"""A run's report with numbers that are all different."""

import numpy as np
import pytest

from medcare_jax.evaluation.metrics import estimate
from medcare_jax.evaluation.report.content import RunReport, StageCurve
from medcare_jax.evaluation.tasks import ALIGNMENT, KNOWLEDGE


def result(kind, metric, *, items=50, left_out=0, **right):
    """A `TaskResult`; per metric the number of right items, spread evenly."""
    scores = {}
    for name, count in right.items():
        outcomes = [int((i * count) % items < count) for i in range(items)]
        half = items // 2
        types = {
            "chapter": {"score": sum(outcomes[:half]) / half, "items": half},
            "title": {"score": sum(outcomes[half:]) / (items - half), "items": items - half},
        }
        scores[name] = {**estimate(outcomes)._asdict(), "types": types, "outcomes": outcomes}
    return {
        "title": "A task",
        "language": "en",
        "kind": kind,
        "metric": metric,
        "protocol": "generate",
        "items": items,
        "left_out": {"longer than the context": left_out},
        "protocols": {"generate": {"unreadable": 0.0, "scores": scores}},
    }


def results(coding, valid, unseen):
    """Both tasks of a stage; the alignment-required one first, so that order is the report's."""
    tasks = {
        "coding": result(ALIGNMENT, "exact_match", exact_match=coding, valid_format=valid),
        "unseen": result(KNOWLEDGE, "accuracy", accuracy=unseen, left_out=3),
    }
    return {"format": 1, "status": "complete", "tasks": tasks}


def curve(name, steps, *, has_leak):
    random = np.random.default_rng(steps)
    draw = lambda low, high: tuple(random.uniform(low, high, steps).tolist())
    leak = draw(2e-8, 9e-8) if has_leak else ()
    return StageCurve(
        name,
        tuple(range(1, steps + 1)),
        draw(1, 3),
        draw(0, 4e-4),
        draw(300, 500),
        leak,
        1e-6 if has_leak else None,
    )


@pytest.fixture(scope="session")
def report() -> RunReport:
    return RunReport(
        title="A <small> run & more",
        base="some/base",
        stages=(curve("MKA", 47, has_leak=False), curve("DA", 31, has_leak=True)),
        scores={
            "base": results(coding=0, valid=2, unseen=13),
            "mka": results(coding=21, valid=44, unseen=33),
            "da": results(coding=41, valid=49, unseen=18),
        },
        data={"mka": {"files": [{"path": "a|b.json", "kept": 12_345}]}, "overlap": {"found": 0}},
        settings={"seed": 7, "constraint": {"kind": "projection"}},
        digests={"base": "ab" * 32},
        versions={"jax": "0.10.2"},
        export="out/export",
    )
