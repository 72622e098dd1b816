"""What is said when the process of a plan ends without an answer."""

import signal
import types

import pytest

from medcare_jax.planning import worker


def ended(monkeypatch, code, stderr=""):
    """The error of a process that ended so."""
    done = types.SimpleNamespace(returncode=code, stdout="", stderr=stderr)
    monkeypatch.setattr(worker.subprocess, "run", lambda *args, **kwargs: done)
    with pytest.raises(worker.PlanError) as error:
        worker.plan_in_subprocess({}, "mka", "v5e:32x32")
    return str(error.value)


def test_a_compiler_that_aborts_does_not_know_the_slice(monkeypatch):
    text = ended(monkeypatch, -signal.SIGABRT)
    assert "v5e:32x32 x 1" in text
    assert "does not know such a slice" in text


def test_another_signal_says_nothing_of_the_slice(monkeypatch):
    text = ended(monkeypatch, -signal.SIGKILL)
    assert "such a slice" not in text
    assert "signal 9" in text
    assert "memory" in text


def test_an_error_is_quoted_from_its_end(monkeypatch):
    text = ended(monkeypatch, 1, "first\n" * 20 + "the last")
    assert text.startswith("planning failed:\nfirst")
    assert text.endswith("the last")
