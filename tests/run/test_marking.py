"""The judge as the command runs it, and that nothing is sent where none is named."""

import socket

import pytest

from medcare_jax.evaluation.judging.endpoint import Endpoint
from medcare_jax.evaluation.report.evaluation_report import write_evaluation_report
from medcare_jax.evaluation.report.paired import compare_folders
from medcare_jax.evaluation.results import write_results
from medcare_jax.run.marking import Marking, mark_answers
from medcare_jax.run.progress import Display
from medcare_jax.run.workdir import WorkdirError, hold
from tests.evaluation.judging.server import always, serve
from tests.evaluation.judging.test_folder import folder  # noqa: F401  a fixture
from tests.evaluation.report.evaluations import results_of, task_result


def test_marks_are_in_the_report(folder, capsys):  # noqa: F811
    with serve(always()) as (stub, url):
        asked = Marking(Endpoint(url, "m", key="k-very-secret"))
        results = mark_answers(folder, asked, Display())
    assert results["status"] == "complete"
    assert len(stub.requests) == 6
    assert "4.00" in (folder / "report.md").read_text()
    said = capsys.readouterr()
    assert "6 requests, 0 from the cache" in said.out + said.err
    assert "k-very-secret" not in said.out + said.err


def test_two_judges_do_not_write_one_folder(folder):  # noqa: F811
    with serve(always()) as (stub, url), hold(folder):
        with pytest.raises(WorkdirError, match="is in use"):
            mark_answers(folder, Marking(Endpoint(url, "m", key="")), Display(is_shown=False))
    assert stub.requests == []


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    asked = Marking(Endpoint("http://127.0.0.1:1/v1", "m", key=""))
    with pytest.raises(FileNotFoundError, match="evaluate a model into it first"):
        mark_answers(tmp_path / "none", asked, Display(is_shown=False))
    assert not (tmp_path / "none").exists()


def test_without_an_endpoint_nothing_is_sent(folder, tmp_path, monkeypatch):  # noqa: F811
    def refuse(*arguments):
        raise AssertionError("a connection was opened")

    monkeypatch.setenv("MEDCARE_JUDGE_KEY", "k-very-secret")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    other = tmp_path / "other"
    write_results(other, results_of({"medqa": task_result("MedQA", items=4)}))
    write_evaluation_report(folder)
    compare_folders([folder, other], tmp_path / "c")
    with pytest.raises(ValueError, match="expected the judge's address"):
        Endpoint("", "m")
