"""Answers in a real browser: found by search, filtered, linked to, and never run."""

import json
import re

import pytest

from medcare_jax.evaluation.report.answers_browser import browser
from medcare_jax.evaluation.report.evaluation_report import page
from tests.evaluation.report.chromium import shown
from tests.evaluation.report.evaluations import results_of, task_result

EVIL = (
    "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title='o'\">"
)
RESULTS = results_of({"medqa": task_result("MedQA"), "ccte": task_result("CCTE", "judge")})


def sample(number, *, task="medqa", output="B", parsed="B", score=0, question=""):
    return {
        "task": task,
        "protocol": "generate",
        "id": f"q{number}",
        "type": "",
        "prompt": [{"role": "user", "content": question or f"Question {number}?"}],
        "output": output,
        "parsed": parsed,
        "gold": "A",
        "scores": {} if score is None else {RESULTS["tasks"][task]["metric"]: score},
        "details": {},
    }


def data_of(body):
    (text,) = re.findall(r'id="samples">(.*?)</script>', body, flags=re.DOTALL)
    return json.loads(text)


def test_outcomes():
    samples = [
        sample(0, score=1),
        sample(1, score=0),
        sample(2, score=0, parsed=None),
        sample(3, score=None),
        sample(4, task="ccte", score=5.0),
        sample(5, task="ccte", score=4.75),
        sample(6, task="ccte", score=1.0, parsed=None),
    ]
    kinds = [entry["k"] for entry in data_of(browser(RESULTS, samples))["samples"]]
    assert kinds == ["right", "wrong", "unreadable", "unscored", "right", "wrong", "wrong"]


def test_answers_of_cblue_have_the_outcome_of_their_own_task():
    results = results_of({"cblue": task_result("CBLUE", "score")})
    scores = [
        {"accuracy": 1},
        {"f1": 0.5},
        {"rougeL": 1 - 1e-8},
        {"f1": 1.0, "judge": 2.0},
        {"judge": 2.0, "accuracy": 0},
    ]
    samples = [{**sample(0), "task": "cblue", "scores": each} for each in scores]
    samples.append({**samples[1], "parsed": None, "scores": {"f1": 0.0}})
    kinds = [entry["k"] for entry in data_of(browser(results, samples))["samples"]]
    assert kinds == ["right", "wrong", "right", "right", "wrong", "unreadable"]


def test_samples_survive_whole_and_stay_inert():
    text = EVIL + "\u2028 <!-- & 发热"
    body = browser(RESULTS, [sample(0, question=text, output=text)])
    (entry,) = data_of(body)["samples"]
    assert (entry["m"], entry["o"]) == ([["user", text]], text)
    assert body.count("<script") == 1
    assert "<img" not in body


def test_without_samples_there_is_nothing():
    assert browser(RESULTS, []) == ""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Three thousand answers, one of which mentions a rare word and another one markup."""
    many = [sample(i, score=int(i % 3 == 0)) for i in range(3000)]
    many[1] = sample(1, question="患者发热,leptospirosis?", parsed=None)
    many[4] = sample(4, question=EVIL, output=EVIL)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(RESULTS, many), encoding="utf-8")
    return path


def listed(dom):
    return re.findall(r'<details class="answer (\w+)">', dom)


def count(dom):
    return re.search(r'id="count"[^>]*>([^<]*)<', dom).group(1)


@pytest.mark.parametrize(
    ("fragment", "kinds", "said"),
    [
        ("", ["wrong", "unreadable"], "2,000 of 3,000 answers, 50 shown"),
        ("#q=LEPTOSPIROSIS%20发热", ["unreadable"], "1 of 3,000 answers"),
        ("#q=leptospirosis&outcome=right", [], "0 of 3,000 answers"),
        ("#outcome=right", ["right"], "1,000 of 3,000 answers, 50 shown"),
    ],
)
def test_a_search_shows_what_it_should(path, tmp_path, fragment, kinds, said):
    dom = shown(path, tmp_path, fragment)
    assert sorted(set(listed(dom))) == sorted(kinds)
    assert count(dom) == said
    assert len(listed(dom)) <= 50, "a screenful at a time"


def test_markup_in_an_answer_is_shown_and_not_run(path, tmp_path):
    dom = shown(path, tmp_path, "#q=onerror")
    assert listed(dom) == ["wrong"]
    assert "<title>Evaluation of some/model</title>" in dom
    assert "&lt;/script&gt;" in dom
    assert "<img" not in dom
