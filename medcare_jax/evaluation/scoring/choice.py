r"""Answers to exam questions: which letters were given, and are they the right ones.

The reference has one function per data set; `REFERENCE` holds ours by the same names. Their marks
depend on `$`, which lets one newline follow, and on `.`, which stops at a newline: an announced
answer counts only on the last line.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

LETTERS = "ABCDE"
"""The letters that the reference knows of."""


class Reading(NamedTuple):
    """What a rule found in an answer.

    Attributes:
      letters: the letters given, in alphabetical order; None if the rule could read none.
      is_right: whether the rule counts the answer as right.
    """

    letters: str | None
    is_right: bool


Rule = Callable[[str, str], Reading]
"""From an answer and the gold letters to a reading."""

_ZH = re.compile(r"答案为(.*?)$")
_EN = re.compile(r"The answer is (.*?)$")
_EN_SENTENCE = re.compile(r"the answer is (.*?)(\.|$)", re.IGNORECASE)
_FIRST_LETTER = re.compile(f"[{LETTERS}]")
_EXPLAINED_WRONG = "错，为本题正确答案"


def announced_zh(text: str, gold: str) -> Reading:
    r"""Letters behind 答案为 on the last line, else those that the explanation calls right.

    All gold letters and no other of A to E. What follows the last run of three newlines is left
    out; an explanation calls D right by `D对`, or by `D错，为本题正确答案` where a wrong statement
    was asked for.

    Examples:
      >>> announced_zh("选A、C。\n答案为AC。", "AC")
      Reading(letters='AC', is_right=True)
      >>> announced_zh("A错。B对。", "B").is_right
      True
    """
    found = _ZH.search(text.rsplit("\n\n\n", 1)[0])
    if found:
        given = _letters_in(found[0])
        return Reading(given or None, _all_in(gold, found[0]) and not _others(given, gold))
    wrong = "".join(x for x in LETTERS if f"{x}{_EXPLAINED_WRONG}" in text)
    if f"{gold}{_EXPLAINED_WRONG}" in text:
        return Reading(wrong or None, True)
    right = "".join(x for x in LETTERS if f"{x}对" in text)
    is_right = all(f"{letter}对" in text for letter in gold) and not _others(right, gold)
    return Reading(right or wrong or None, is_right)


def announced_en(text: str, gold: str) -> Reading:
    """Letters behind "The answer is" on the last line; with one gold letter, others may stand by.

    Examples:
      >>> announced_en("The answer is D or E.", "D")
      Reading(letters='DE', is_right=True)
      >>> announced_en("The answer is D or E.", "DA").is_right
      False
    """
    found = _EN.search(text)
    if not found:
        return Reading(None, False)
    given = _letters_in(found[0].removeprefix("The answer is"))
    tolerated = len(gold) <= 1 or not _others(given, gold)
    return Reading(given or None, _all_in(gold, found[0]) and tolerated)


def sentence_en(text: str, gold: str) -> Reading:
    """The letter right before the full stop of the first sentence with "the answer is"."""
    found = _EN_SENTENCE.search(text)
    if not found:
        return Reading(None, False)
    given = "".join(x for x in LETTERS if f"{x}." in found[0])
    return Reading(given or None, f"{gold}." in found[0])


def contained_zh(text: str, gold: str) -> Reading:
    """Whether the gold stands, as it is, behind 答案为 on the last line."""
    found = _ZH.search(text)
    if not found:
        return Reading(None, False)
    return Reading(_letters_in(found[0]) or None, gold in found[0])


def first_letter(text: str, gold: str) -> Reading:
    """The first of A to E anywhere, also inside a word."""
    found = _FIRST_LETTER.search(text)
    return Reading(found[0], found[0] == gold) if found else Reading(None, False)


def any_text(text: str, golds: Iterable[str]) -> bool:
    """Whether one of the right texts stands in the answer."""
    return any(gold in text for gold in golds)


REFERENCE: dict[str, Rule] = {
    "multiplechoice_acc": announced_zh,
    "multiplechoice_en_acc": announced_en,
    "mmedbench_en_cot_acc": sentence_en,
    "mmedbench_zh_cot_acc": contained_zh,
    "mmedbench_acc": first_letter,
    "answer_acc": first_letter,
}
"""The reference's functions by name; its `record_acc` is `any_text`."""

_PROSE = r"\s+(?!(?:and|are|as|because|is|or|since)\b)[a-z]"
"""What follows a word and not a letter that was given."""
_WORD = rf"I['’]|[AI]{_PROSE}"
"""A pronoun or an article: `I believe`, `A patient`."""
_SENTENCE = r"[A-Z]\s+(?:is|was|would|does|has|can|cannot|could|may|might)\b"
_CLAUSE = r"[A-Z]\s*(?:选项|项)?\s*(?![和与及或])[\u4e00-\u9fff]"
"""Where a sentence about an option begins: `A is wrong`, A选项错误."""

_PHRASE = re.compile(
    r"(?i:the (?:correct |final |right )?answer is)|答案[为是]|答案(?=[*_\s]*[:：])|\\boxed(?=\{)"
    rf"|(?i:\banswer)(?=[*_\s]*[:：])(?![*_\s]*[:：][*_\s]*(?:{_WORD}))"
)
_LISTED = rf"\s*[,，]?\s*(?:、|/|\+|&|\band\b|和|与|及)\s*(?!{_WORD}|{_SENTENCE})"
_PAUSED = rf"(?:\s*[,，;；]\s*|\s+)?(?!{_WORD}|{_SENTENCE}|{_CLAUSE})"
_LEAD = r"(?:[\s:：(（\[【{*_\"'“$]|\\(?:boxed|text|textbf|mathrm)(?=\{)|\b(?i:options?)\b|选项)*"
_GIVEN = re.compile(
    rf"{_LEAD}(?P<given>[A-Z](?:(?:{_LISTED}|{_PAUSED})[A-Z](?![A-Za-z]))*)(?![A-Za-z])"
)
_GIVEN_RUN = re.compile(
    rf"{_LEAD}(?P<given>[A-Z]{{2,}})(?![A-Za-z]|{_PROSE})"
)  # not `ACE inhibitors`
_ALTERNATIVE = re.compile(r"[)）\]】}*_$\"'”\s,，]*(?:\bor\b|或)")


def strict(text: str, gold: str, *, options: str = LETTERS) -> Reading:
    r"""The letters behind the last announcement of an answer must be the gold ones, all and only.

    An announcement is "the answer is", "answer:", 答案为, 答案是, 答案： or `\boxed{`, anywhere and
    in any case; one without a letter ("the answer is correct") is none. Letters may stand in
    brackets or stars, behind "option" or 选项, together or apart (`AC`, `A, C`, `A、C`, `A and C`);
    what follows as prose ("I believe", "A is wrong", A选项错误) is no letter. None is read if a
    letter is no option, or if an alternative follows ("B or C").

    Args:
      text: the answer.
      gold: the right letters.
      options: the letters of the question's options.

    Examples:
      >>> strict("The answer is A. No: the answer is **B**.", "B")
      Reading(letters='B', is_right=True)
      >>> strict("答案为A、C。", "AC")
      Reading(letters='AC', is_right=True)
      >>> strict("The answer is B or C.", "B")
      Reading(letters=None, is_right=False)
    """
    found = _last_given(text)
    if not found or _ALTERNATIVE.match(text, found.end()):
        return Reading(None, False)
    given = set(re.sub(r"and|[^A-Z]", "", found["given"]))
    if not given <= set(options):
        return Reading(None, False)
    return Reading("".join(sorted(given)), given == set(gold))


def _last_given(text: str) -> re.Match[str] | None:
    """The letters behind the last announcement that has any."""
    for phrase in reversed([*_PHRASE.finditer(text)]):
        if found := _GIVEN_RUN.match(text, phrase.end()) or _GIVEN.match(text, phrase.end()):
            return found
    return None


def _letters_in(text: str) -> str:
    """Those of A to E that a text has."""
    return "".join(letter for letter in LETTERS if letter in text)


def _all_in(gold: str, text: str) -> bool:
    """Whether a text has every character of the gold."""
    return all(letter in text for letter in gold)


def _others(given: str, gold: str) -> bool:
    """Whether a letter was given that is not gold."""
    return bool(set(given) - set(gold))
