"""ROUGE: the golden values to 1e-9, the package behind them, and the textbook's definition."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcare_jax.evaluation.scoring.rouge import (
    Rouge,
    chinese_tokens,
    common_length,
    english_tokens,
    mean_rouge,
    rouge,
)
from tests.evaluation.scoring.golden import document

NAMES = ("rouge1_f", "rouge2_f", "rougeL_f")
WORDS = st.lists(st.sampled_from(["咳", "嗽", "。", "？", "ct", "3"]), min_size=1, max_size=12)


def test_golden_pairs(shared):
    golden = document(shared / "golden" / "scoring" / "rouge.json")
    rows = []
    for pair in golden["pairs"]:
        sides = [chinese_tokens(pair[side]) for side in ("prediction", "reference")]
        assert sides == [pair["prediction_tokens"], pair["reference_tokens"]]
        rows.append(rouge(*sides, "reference"))
        assert rows[-1] == pytest.approx([pair[name] for name in NAMES], abs=1e-9, rel=0)
    together = [golden["all_pairs_together"][name] for name in NAMES]
    assert mean_rouge(rows) == pytest.approx(together, abs=1e-9, rel=0)


@given(WORDS, WORDS)
@settings(max_examples=60, deadline=None)
def test_the_reference_rules_are_rouge_chinese(prediction, reference):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("rouge_chinese")
    scores = package.Rouge().get_scores(" ".join(prediction), " ".join(reference))[0]
    expected = [scores[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")]
    assert rouge(prediction, reference, "reference") == pytest.approx(expected, abs=1e-12)


def test_strict_counts_repeated_words_and_gives_nothing_for_nothing():
    assert rouge(["a", "a", "a"], ["a", "b", "c"], "strict") == pytest.approx((1 / 3, 0, 1 / 3))
    assert rouge(list("abc"), list("abc"), "strict") == Rouge(1, 1, 1)
    assert rouge([], ["a"], "strict") == rouge(["a"], [], "strict") == Rouge(0, 0, 0)


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="got none"):
        mean_rouge([])


@given(st.text("abc", max_size=9), st.text("abc", max_size=9))
@settings(max_examples=60, deadline=None)
def test_the_longest_common_subsequence_is_the_tables(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first, 1):
        for j, b in enumerate(second, 1):
            longer = max(table[i - 1][j], table[i][j - 1])
            table[i][j] = table[i - 1][j - 1] + 1 if a == b else longer
    assert common_length(first, second) == table[-1][-1]


def test_english_words():
    assert english_tokens("Her Ca2+ is low; re-check.") == [
        "her",
        "ca2",
        "is",
        "low",
        "re",
        "check",
    ]
