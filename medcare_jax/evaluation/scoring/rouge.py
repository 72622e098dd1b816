"""ROUGE-1, ROUGE-2 and ROUGE-L, as the reference computes them and as they are meant.

The reference uses the package rouge-chinese 1.0.3: n-grams are sets, F has 1e-8 in its denominator,
and a text without a token stands for `无 。`. Ours gives its numbers and is tested against it; the
package has had no release since 2022 and its table of the longest common subsequence takes a
Python object per pair of tokens.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from transformers import BasicTokenizer

from medcare_jax.evaluation.scoring import Rules

_NO_TEXT = ["无", "。"]
_EPSILON = 1e-8
_TOKENIZER: Any = BasicTokenizer(tokenize_chinese_chars=True)  # type: ignore[no-untyped-call]
_ENGLISH = re.compile("[a-z0-9]+")


class Rouge(NamedTuple):
    """F1 of shared unigrams, bigrams, and of the longest common subsequence, each in [0, 1]."""

    rouge_1: float
    rouge_2: float
    rouge_l: float


def chinese_tokens(text: str) -> list[str]:
    """Chinese characters one by one; other words and marks as BERT splits them, lower case.

    Examples:
      >>> chinese_tokens("做CT检查。")
      ['做', 'ct', '检', '查', '。']
    """
    tokens: list[str] = _TOKENIZER.tokenize(text)
    return tokens


def english_tokens(text: str) -> list[str]:
    """Runs of Latin letters and digits, lower case, as Google's rouge-score without stemming.

    Examples:
      >>> english_tokens("Denies X-ray in 2019.")
      ['denies', 'x', 'ray', 'in', '2019']
    """
    return _ENGLISH.findall(text.lower())


def rouge(prediction: Sequence[str], reference: Sequence[str], rules: Rules) -> Rouge:
    """ROUGE of two lists of tokens.

    Args:
      prediction: tokens of what was written.
      reference: tokens of what is right.
      rules: `reference`: sets of n-grams, as above; `strict`: n-grams count as often as they stand
        (Lin, ROUGE, 2004), and an empty side scores 0.

    Examples:
      >>> rouge(["a", "a"], ["a", "b"], "strict")
      Rouge(rouge_1=0.5, rouge_2=0.0, rouge_l=0.5)
      >>> round(rouge([], [], "reference").rouge_l, 6)
      1.0
    """
    if rules == "reference":
        prediction, reference = prediction or _NO_TEXT, reference or _NO_TEXT
        epsilon = _EPSILON
    else:
        epsilon = 0.0
    shared, sizes = [], []
    for n in (1, 2):
        mine, gold = _ngrams(prediction, n, rules), _ngrams(reference, n, rules)
        shared.append(sum((mine & gold).values()))
        sizes.append((sum(mine.values()), sum(gold.values())))
    shared.append(common_length(prediction, reference))
    sizes.append((len(prediction), len(reference)))
    return Rouge(*(_f1(s, *size, epsilon) for s, size in zip(shared, sizes, strict=True)))


def mean_rouge(scores: Iterable[Rouge]) -> Rouge:
    """The mean of each of the three.

    Raises:
      ValueError: there is none.
    """
    rows = list(scores)
    if not rows:
        raise ValueError("expected at least one pair of texts to average over, got none")
    return Rouge(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence, a whole row of its table in one integer.

    References:
      Hyyrö, Bit-parallel LCS-length computation revisited, 2004

    Examples:
      >>> common_length("abcbdab", "bdcaba")
      4
    """
    places: dict[str, int] = {}
    for i, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(first)) - 1
    row = full
    for token in second:
        matched = row & places.get(token, 0)
        row = (row + matched) | (row - matched)
    return len(first) - (row & full).bit_count()


def _ngrams(tokens: Sequence[str], n: int, rules: Rules) -> Counter[tuple[str, ...]]:
    """The n-grams of a text, with how often they count."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return Counter(set(grams) if rules == "reference" else grams)


def _f1(shared: int, mine: int, gold: int, epsilon: float) -> float:
    """Harmonic mean of precision and recall; 0 if nothing is shared."""
    precision, recall = shared / mine if mine else 0.0, shared / gold if gold else 0.0
    total = precision + recall + epsilon
    return 2 * (precision * recall / total) if total else 0.0
