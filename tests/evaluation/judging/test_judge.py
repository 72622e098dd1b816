"""Many answers: kept replies, limits, garbage, and an endpoint that goes away."""

import socket
import stat

import pytest

from medcare_jax.evaluation.judging.endpoint import Endpoint
from medcare_jax.evaluation.judging.judge import Answer, Budget, as_record, describe_cost, judge
from tests.evaluation.judging.server import GOOD, always, completion, serve

ANSWERS = [Answer([{"role": "user", "content": f"question {i}"}], f"answer {i}") for i in range(12)]
MARKS = {"fluency": 5, "relevance": 4, "completeness": 3, "proficiency": 4}


def endpoint(url, **changes):
    return Endpoint(url, "m", **{"key": "", "first_wait": 0.01, "tries": 2, **changes})


def by_answer(table, default=GOOD):
    """A plan that replies by the number of the answer."""

    def plan(number, body):
        text = body["messages"][1]["content"]
        place = int(text.split("answer to be marked ===\nanswer ")[1].split()[0])
        return 200, {}, completion(table.get(place, default)), 0

    return plan


def test_marks_are_in_the_order_of_the_answers_and_paid_for_once(tmp_path):
    table = {i: GOOD.replace("5", str(i % 5 + 1)) for i in range(12)}
    with serve(by_answer(table)) as (stub, url):
        first = judge(ANSWERS, endpoint(url), cache=tmp_path / "c")
        assert len(stub.requests) == 12
        again = judge(ANSWERS, endpoint(url), cache=tmp_path / "c")
        assert len(stub.requests) == 12
        judge(ANSWERS[:1], Endpoint(url, "other", key=""), cache=tmp_path / "c")
        assert len(stub.requests) == 13, "another model is another judge"
    assert [marks["fluency"] for marks in first.marks] == [i % 5 + 1 for i in range(12)]
    assert again.marks == first.marks
    assert (first.requests, first.cached, first.prompt_tokens) == (12, 0, 1200)
    assert (again.requests, again.cached, again.prompt_tokens) == (0, 12, 0)


def test_replies_on_disk_are_for_their_owner_and_hold_no_text(tmp_path):
    with serve(always("Well. " + GOOD)) as (_, url):
        judge(ANSWERS, endpoint(url), cache=tmp_path / "c")
    files = list((tmp_path / "c").iterdir())
    assert len(files) == 12
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    assert not any("Well" in f.read_text() or "question" in f.read_text() for f in files)


def test_garbage_is_counted_not_kept_and_asked_for_again(tmp_path):
    table = {2: "I cannot judge that.", 5: GOOD.replace("5", "9"), 7: "{"}
    with serve(by_answer(table)) as (stub, url):
        done = judge(ANSWERS, endpoint(url), cache=tmp_path)
        assert [i for i, marks in enumerate(done.marks) if marks is None] == [2, 5, 7]
        assert done.failures == {
            "no JSON object with every mark": 2,
            "a mark out of 1 to 5": 1,
        }
        stub.plan = always()
        assert judge(ANSWERS, endpoint(url), cache=tmp_path).requests == 3


@pytest.mark.parametrize("text", [None, [{"type": "text", "text": GOOD}]])
def test_a_reply_without_text_is_paid_for(tmp_path, text):
    """As of a judge that thinks until its tokens are spent."""
    with serve(lambda number, body: (200, {}, completion(text), 0)) as (stub, url):
        budget = Budget(prompt_price=2.0, most_tokens=330)
        done = judge(ANSWERS, endpoint(url), cache=tmp_path, budget=budget, workers=1)
    assert done.marks == [None] * 12
    assert (done.requests, done.prompt_tokens, done.completion_tokens) == (3, 300, 30)
    assert done.money == pytest.approx(300 * 2 / 1e6)
    assert done.failures == {
        "no JSON object with every mark": 3,
        "not asked, the limit is spent": 9,
    }


def test_a_damaged_reply_on_disk_is_asked_for_again(tmp_path):
    with serve(always()) as (_, url):
        judge(ANSWERS, endpoint(url), cache=tmp_path)
        victim = next(tmp_path.iterdir())
        victim.write_bytes(b"\xff{")
        done = judge(ANSWERS, endpoint(url), cache=tmp_path)
    assert (done.requests, done.cached) == (1, 11)
    assert done.marks == [MARKS] * 12


@pytest.mark.parametrize(
    "budget",
    [Budget(most_tokens=330), Budget(prompt_price=10.0, completion_price=0.0, most_money=0.003)],
)
def test_nothing_is_asked_beyond_a_limit(tmp_path, budget):
    with serve(always()) as (stub, url):
        done = judge(ANSWERS, endpoint(url), cache=tmp_path, budget=budget, workers=1)
    assert len(stub.requests) == 3
    assert done.failures == {"not asked, the limit is spent": 9}
    assert done.marks[:3] == [MARKS] * 3


def test_cost_is_counted_at_the_prices_given(tmp_path):
    budget = Budget(prompt_price=2.0, completion_price=30.0)
    with serve(always()) as (_, url):
        done = judge(ANSWERS, endpoint(url), cache=tmp_path, budget=budget)
    assert done.money == pytest.approx((1200 * 2 + 120 * 30) / 1e6)
    line = describe_cost(done, budget)
    assert line == "12 requests, 0 from the cache, 1,200 + 120 tokens, 0.0060 in money"
    assert as_record(done)["marked"] == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"most_money": 1.0}, "needs the prices"), ({"prompt_price": -1.0}, "at least 0")],
)
def test_limits_that_cannot_hold_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Budget(**settings)


def test_a_dead_endpoint_is_tried_three_times_and_no_more(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    done = judge(ANSWERS, endpoint(url), cache=tmp_path, workers=1)
    assert done.marks == [None] * 12
    assert done.failures == {"no connection": 3, "not asked, the endpoint is down": 9}


def test_a_refused_key_stops_at_once_and_keeps_what_was_marked(tmp_path):
    plan = lambda number, body: (200 if number < 5 else 401, {}, completion(GOOD), 0)
    with serve(plan) as (stub, url):
        done = judge(ANSWERS, endpoint(url), cache=tmp_path, workers=1)
    assert len(stub.requests) == 5
    assert done.marks == [MARKS] * 4 + [None] * 8
    assert done.failures == {"HTTP 401": 1, "not asked after HTTP 401": 7}


def test_progress_is_told(tmp_path):
    counts = []
    with serve(always()) as (_, url):
        judge(ANSWERS, endpoint(url), cache=tmp_path, on_done=counts.append)
    assert counts == [1] * 12
