"""A real server on this machine that is busy, slow, broken, or gone."""

import datetime
import email.utils
import socket

import pytest

from medcare_jax.evaluation.judging.endpoint import Endpoint, EndpointError
from tests.evaluation.judging.server import GOOD, always, completion, serve

ASKED = [{"role": "user", "content": "a patient's words"}]
KEY = "k-very-secret"


def endpoint(url, **changes):
    return Endpoint(url, "m", **{"key": KEY, "first_wait": 0.01, "timeout": 5.0, **changes})


def test_a_request_is_what_the_protocol_says():
    with serve(always()) as (stub, url):
        reply = endpoint(url).ask(ASKED)
    assert reply == (GOOD, 100, 10)
    assert stub.requests == [
        ("/v1/chat/completions", {"model": "m", "messages": ASKED, "temperature": 0})
    ]
    assert stub.keys == [f"Bearer {KEY}"]


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch):
    monkeypatch.setenv("MEDCARE_JUDGE_KEY", KEY)
    assert Endpoint("http://127.0.0.1:1/v1", "m").key == KEY
    assert KEY not in repr(Endpoint("http://127.0.0.1:1/v1", "m"))
    monkeypatch.delenv("MEDCARE_JUDGE_KEY")
    with serve(always()) as (stub, url):
        Endpoint(url, "m").ask(ASKED)
    assert stub.keys == [None]


def test_blanks_around_the_key_are_dropped(monkeypatch):
    monkeypatch.setenv("MEDCARE_JUDGE_KEY", f" {KEY}\r\n")  # as a file with CRLF leaves it
    with serve(always()) as (stub, url):
        Endpoint(url, "m").ask(ASKED)
    assert stub.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize("flaw", ["\r", "\n", "–", "é", "\x7f"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(monkeypatch, flaw):
    monkeypatch.setenv("MEDCARE_JUDGE_KEY", f"{KEY}{flaw}rest")
    with pytest.raises(ValueError, match="MEDCARE_JUDGE_KEY") as caught:
        Endpoint("http://127.0.0.1:1/v1", "m")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_what_may_pass_is_asked_again(status):
    plan = lambda number, body: (status if number < 3 else 200, {}, completion(GOOD), 0)
    with serve(plan) as (stub, url):
        assert endpoint(url).ask(ASKED).text == GOOD
    assert len(stub.requests) == 3


def test_retry_after_is_waited_for_in_seconds_and_as_a_date():
    def plan(number, body):
        then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)
        waits = {1: "1", 2: email.utils.format_datetime(then, usegmt=True)}
        if number in waits:
            return 429, {"Retry-After": waits[number]}, "", 0
        return 200, {}, completion(GOOD), 0

    with serve(plan) as (stub, url):
        endpoint(url).ask(ASKED)
    first, second, third = stub.times
    assert second - first >= 1
    assert third - second >= 0.9  # a date has whole seconds: up to one is cut off


def test_a_wait_beyond_patience_is_not_waited_for():
    with serve(always(status=429, headers={"Retry-After": "86400"})) as (stub, url):
        with pytest.raises(EndpointError, match="HTTP 429"):
            endpoint(url).ask(ASKED)
    assert len(stub.requests) == 1


@pytest.mark.parametrize("value", ["soon", "-3", "", "Thu, 99 Foo 2026"])
def test_an_unusable_retry_after_is_none(value):
    plan = lambda number, body: (429 if number == 1 else 200, {"Retry-After": value},
                                 completion(GOOD), 0)  # fmt: skip
    with serve(plan) as (_, url):
        assert endpoint(url).ask(ASKED).text == GOOD


def test_waits_grow():
    with serve(always(status=500)) as (stub, url):
        with pytest.raises(EndpointError, match="HTTP 500"):
            endpoint(url, tries=4, first_wait=0.2).ask(ASKED)
    gaps = [after - before for before, after in zip(stub.times, stub.times[1:], strict=False)]
    # A wait lies between half and all of 0.2, 0.4, 0.8 seconds.
    assert [gap >= wait / 2 for gap, wait in zip(gaps, (0.2, 0.4, 0.8), strict=True)] == [True] * 3


def test_a_slow_server_is_given_up():
    with serve(always(wait=0.5)) as (stub, url):
        with pytest.raises(EndpointError, match="no answer in time"):
            endpoint(url, timeout=0.05, tries=2).ask(ASKED)
    assert len(stub.requests) == 2


def test_a_dead_server_is_named_without_its_text():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    with pytest.raises(EndpointError, match="no connection") as caught:
        endpoint(address, tries=2).ask(ASKED)
    assert not caught.value.is_final


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_cannot_pass_is_not_asked_again(status):
    echo = lambda number, body: (status, {}, f"bad key {KEY}: {body['messages']}", 0)
    with serve(echo) as (stub, url):
        with pytest.raises(EndpointError, match=f"HTTP {status}") as caught:
            endpoint(url).ask(ASKED)
    assert len(stub.requests) == 1
    assert caught.value.is_final == (status != 400)
    assert KEY not in str(caught.value)
    assert "patient" not in str(caught.value)


def test_a_redirect_carries_neither_key_nor_text_to_another_host():
    with serve(always()) as (other, elsewhere):
        with serve(always(status=307, headers={"Location": elsewhere})) as (_, url):
            with pytest.raises(EndpointError, match="HTTP 307"):
                endpoint(url).ask(ASKED)
    assert other.requests == []


@pytest.mark.parametrize(
    "body",
    ["", "<html>", "[]", "{}", '{"choices": []}', '{"choices": [{"message": null}]}'],
)
def test_a_body_that_is_no_completion_is_refused(body):
    with serve(lambda number, asked: (200, {}, body, 0)) as (_, url):
        with pytest.raises(EndpointError, match="no chat completion"):
            endpoint(url).ask(ASKED)


@pytest.mark.parametrize("url", ["", "host/v1", "ftp://host/v1", "file:///etc/passwd"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="https://HOST/v1"):
        Endpoint(url, "m", key="")


@pytest.mark.parametrize("url", ["https://user:pw@host/v1", "https://host/v1?key=pw"])
def test_secrets_in_an_address_are_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="MEDCARE_JUDGE_KEY") as caught:
        Endpoint(url, "m", key="")
    assert "pw" not in str(caught.value)
