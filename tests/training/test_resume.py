"""Every row of the resume table, the facts of a real run, and the published copy of the table."""

import pathlib

import pytest

from configs.base import get_config
from medcare_jax.checkpoints import CheckpointError
from medcare_jax.run.facts import run_facts
from medcare_jax.settings import make_settings
from medcare_jax.training.resume import RESUME_TABLE, Change, check_resume

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "resume.md"

# One fact for each row, and what has to happen when it changes; not read from the table.
EXPECTED = {
    "base.digest": "refused",
    "knowledge.digest": "refused",
    "base.dtype": "refused",
    "data.fingerprint": "refused",
    "adapters.rank": "refused",
    "constraint.kind": "refused",
    "seed": "refused",
    "stage.steps": "refused",
    "stage.max_skipped": "allowed",
    "stage.learning_rate": "warned",
    "mesh.replicated_budget_mib": "allowed",
    "mesh.fsdp": "warned",
    "compute.dtype": "warned",
    "data.accumulation": "warned",
    "data.row_length": "allowed",
    "devices": "warned",
    "versions.jax": "warned",
    "processes": "allowed",
}


@pytest.mark.parametrize(("fact", "expected"), EXPECTED.items())
def test_a_changed_fact_is_allowed_warned_of_or_refused(fact, expected, caplog):
    saved, current = {fact: "before", "seed": 1}, {fact: "after", "seed": 1}
    if fact == "seed":
        saved, current = {"seed": 1}, {"seed": 2}
    if expected == "refused":
        with pytest.raises(CheckpointError, match=rf"{fact}: .* -> .*\(.+\)"):
            check_resume(saved, current)
        return
    warnings = check_resume(saved, current)
    assert [f"{fact}: 'before' -> 'after'" in row for row in warnings] == (
        [True] if expected == "warned" else []
    )
    assert len(caplog.records) == len(warnings)


def test_the_same_facts_pass_in_silence(caplog):
    facts = dict.fromkeys(EXPECTED, 3)
    assert check_resume(facts, dict(reversed(facts.items()))) == []
    assert not caplog.records


def test_all_refused_facts_are_listed_at_once():
    with pytest.raises(CheckpointError) as error:
        check_resume({"seed": 1, "stage.steps": 7, "devices": "a"}, {"seed": 2, "devices": "b"})
    message = str(error.value)
    assert "seed: 1 -> 2" in message
    assert "stage.steps: 7 -> None" in message
    assert "devices" not in message
    assert "new workdir" in message


def test_a_fact_that_comes_or_goes_counts_as_changed():
    with pytest.raises(CheckpointError, match="constraint.kind: None -> 'none'"):
        check_resume({}, {"constraint.kind": "none"})


def test_a_fact_without_a_row_is_a_defect_of_ours():
    with pytest.raises(KeyError, match="no row of RESUME_TABLE matches 'weather'"):
        check_resume({"weather": "fine"}, {"weather": "rain"})


def test_a_fact_of_another_build_is_refused():
    with pytest.raises(CheckpointError, match="weather: 'fine' -> None .another build"):
        check_resume({"weather": "fine"}, {})


def test_every_fact_of_a_run_has_a_row_and_every_row_has_a_fact():
    config = get_config()
    config.base.path = "random"
    settings = make_settings(config)
    known = {"base_digest": "b", "fingerprint": "f", "steps": 3, "knowledge_digest": "k"}
    facts = run_facts(settings, settings.da, settings.constraint, **known)
    for name in facts:
        try:
            check_resume({name: "before"}, {name: "after"})
        except CheckpointError:
            continue
    assert set(EXPECTED) <= set(facts)
    assert len(EXPECTED) == len(RESUME_TABLE)


def test_the_published_table_is_the_one_in_force():
    cells = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in DOCUMENT.read_text().splitlines()
        if line.startswith("| `")
    ]
    table = [(f"`{pattern}`", change.value, why) for pattern, change, why in RESUME_TABLE]
    assert cells == table
    assert {change for _, change, _ in RESUME_TABLE} == set(Change)
