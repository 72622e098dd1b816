"""Every fact that a checkpoint remembers has a row in the table of what may change."""

import pytest

from configs import tiny
from medcare_jax.checkpoints import CheckpointError
from medcare_jax.run.facts import run_facts, versions
from medcare_jax.settings import make_settings
from medcare_jax.training.resume import check_resume


def facts(with_constraint, **changes):
    settings = make_settings(tiny.get_config())
    constraint = settings.constraint if with_constraint else None
    known = {"base_digest": "b", "fingerprint": "f", "steps": 5, "knowledge_digest": "k"} | changes
    return run_facts(settings, settings.da, constraint, **known)


def test_every_fact_has_a_row():
    known = facts(with_constraint=True)
    others = {name: "another" for name in known}
    refused = {"base.digest", "base.dtype", "data.fingerprint", "seed", "stage.steps"}
    refused |= {"knowledge.digest"}
    with pytest.raises(CheckpointError) as error:
        check_resume(others, known)
    for name in known:
        is_listed = f"{name}: 'another'" in str(error.value)
        assert is_listed == (name in refused or name.startswith(("adapters.", "constraint.")))


def test_only_the_alignment_remembers_the_constraint():
    assert "constraint.kind" in facts(with_constraint=True)
    assert not any(name.startswith("constraint") for name in facts(with_constraint=False))


def test_files_may_move_since_the_fingerprint_stands_for_them():
    assert not any(name.endswith(("files", "weights")) for name in facts(with_constraint=True))


def test_versions_are_those_installed():
    import jax

    assert versions()["jax"] == jax.__version__
