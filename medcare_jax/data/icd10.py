"""Demo tasks made from ICD-10-CM: what a small model can learn, and be judged on, within minutes.

Knowledge-intensive questions (which chapter, block, title or category?) are answered by a text that
they do not list; tests weigh it against three others. A list of options would be most of each
dialogue's tokens and teach nothing. Alignment-required notes ask for diagnoses in a strict form.
"""

import itertools
import json
import os
import pathlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from medcare_jax.data.classification import Diagnosis, read_diagnoses
from medcare_jax.files import write_text

__all__ = ["Item", "make_icd10_tasks", "write_icd10_tasks"]

Item = dict[str, Any]

_LONGEST_LISTED = 40  # characters of titles and terms that share one dialogue with others

# The tasks of knowledge are named after the field of a diagnosis that is asked for. Half of them
# ask for the chapter: at 135M parameters that is what generalises soonest.
_KNOWLEDGE_TASKS = ("chapter", "block", "chapter", "title", "chapter", "category")
_ALIGNMENT_TASKS = ("extract", "list", "choose")
# Categories go round these decks, so half of them are taught.
_DECKS = (
    *("taught", "mka_notes", "taught", "da_notes", "taught", "unseen"),
    *("taught", "da_notes", "taught", "coding"),
)

_TAUGHT_WORDS = {
    "chapter": (
        'Which chapter of ICD-10-CM does "{0.title}" belong to?',
        'In which ICD-10-CM chapter is "{0.title}" classified?',
        'A record names "{0.title}". Which ICD-10-CM chapter covers it?',
    ),
    "block": (
        'Which block of ICD-10-CM does "{0.title}" fall into?',
        'Under which ICD-10-CM block is "{0.title}" listed?',
    ),
    "title": (
        "What does the ICD-10-CM code {0.code} stand for?",
        "Which diagnosis has the ICD-10-CM code {0.code}?",
    ),
    "category": (
        'Which ICD-10-CM category holds "{0.title}"?',
        'What is the three-character ICD-10-CM category of "{0.title}"?',
    ),
}
_OTHER_WORDS = {
    "chapter": (
        'Name the part of the ICD-10-CM book where a coder would look up "{0.title}".',
        '"{0.title}" has to be filed. Choose its chapter.',
    ),
    "block": (
        'Choose the group of related conditions that "{0.title}" is part of.',
        '"{0.title}" sits among related conditions. What is that group called?',
    ),
    "title": (
        "A bill shows {0.code}. What is the patient being treated for?",
        "Translate {0.code} into words.",
    ),
    "category": (
        'How do the codes for "{0.title}" begin?',
        'A coder writes down "{0.title}". Which three characters come first?',
    ),
}
_NOTES = (
    "Follow-up visit. Assessment: {0}. Continue current treatment.",
    "Discharge summary. Main diagnosis: {0}.",
    "Patient seen today. Dx: {0}.",
    "Referral letter. Reason: {0}.",
)
_NOTES_OF_TWO = (
    "Problem list: {0}; {1}.",
    "Admitted with {0}. Also known: {1}.",
    "Assessment: 1. {0} 2. {1}",
)


def make_icd10_tasks(
    *,
    seed: int,
    mka_knowledge: int = 800,
    mka_alignment: int = 240,
    da_alignment: int = 320,
    test: int = 120,
) -> dict[str, list[Item]]:
    """Returns the demo's data sets in the MedCareData layout, all made from one seed.

    A three-character category is dealt to one data set only, so a diagnosis of ``test/unseen`` or
    ``test/coding`` has no near twin in training. ``test/retained`` asks for facts that
    ``1-stage/train`` taught, in other words and with other options.

    Args:
      seed: Another seed gives other diagnoses, wordings and options.
      mka_knowledge: Knowledge-intensive dialogues of stage 1, half of them on chapters.
      mka_alignment: Alignment-required dialogues of stage 1.
      da_alignment: Alignment-required dialogues of stage 2.
      test: Items of each of the three test sets.

    Returns:
      ``1-stage/train``, ``2-stage/train``, ``test/unseen``, ``test/retained``, ``test/coding``.
      Test items carry ``eval`` with ``answer``, ``type``, ``sample_id`` and either ``options``
      (four texts; the right one stands equally often at each place) or ``format``
      (``code_title`` or ``json``).

    Raises:
      ValueError: A size is below 1 or more than the classification yields.

    Examples:
      >>> tasks = make_icd10_tasks(seed=0, test=4)
      >>> len(tasks["1-stage/train"]), len(tasks["test/coding"])
      (1040, 4)
    """
    sizes = (mka_knowledge, mka_alignment, da_alignment, test)
    if min(sizes) < 1 or test > mka_knowledge:
        raise ValueError(
            "ICD-10-CM tasks: every size must be at least 1, and test at most mka_knowledge; got "
            "mka_knowledge={}, mka_alignment={}, da_alignment={}, test={}.".format(*sizes)
        )
    decks = _deal(seed)
    taught = _draw_facts(decks["taught"], mka_knowledge)
    unseen = _draw_facts(decks["unseen"], test)
    mka = _ask(decks["taught"], taught, _TAUGHT_WORDS) + _note(decks["mka_notes"], mka_alignment)
    # The first facts taught are spread over tasks and chapters like all of them.
    retained = _ask(decks["taught"], taught[:test], _OTHER_WORDS, "icd10-reworded")
    tasks = {
        "1-stage/train": [_for_training(item) for item in mka],
        "2-stage/train": [_for_training(item) for item in _note(decks["da_notes"], da_alignment)],
        "test/unseen": _ask(decks["unseen"], unseen, _TAUGHT_WORDS),
        "test/retained": retained,
        "test/coding": _note(decks["coding"], test),
    }
    for name, items in tasks.items():  # so that every tenth item, say, is a fair sample
        random.Random(f"icd10/{seed}/order/{name}").shuffle(items)
    return tasks


def write_icd10_tasks(
    folder: str | os.PathLike[str], *, seed: int, **sizes: int
) -> dict[str, pathlib.Path]:
    """Writes :func:`make_icd10_tasks` as JSON files and returns their paths by name.

    The same arguments give the same bytes. A file appears whole or not at all; one of the same
    name is replaced.

    Args:
      folder: Gets ``1-stage/train.json``, ``2-stage/train.json`` and ``test/*.json``.
      seed: As in :func:`make_icd10_tasks`.
      **sizes: As in :func:`make_icd10_tasks`.
    """
    paths = {}
    for name, items in make_icd10_tasks(seed=seed, **sizes).items():
        path = paths[name] = pathlib.Path(folder, f"{name}.json")
        lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        write_text(path, f"[\n{lines}\n]\n")
    return paths


class _Deck:
    """Diagnoses drawn once each, in an order that goes round the chapters and categories."""

    def __init__(self, name: str, seed: int, diagnoses: Sequence[Diagnosis]) -> None:
        self.name = name
        self.rng = random.Random(f"icd10/{seed}/{name}")  # so that no size changes another deck
        self.chapters = _grouped(self.rng.sample(diagnoses, len(diagnoses)), "chapter")
        self._left = _interleave(
            _interleave(_grouped(chapter, "category").values())
            for chapter in self.chapters.values()
        )

    def draw(self, fits: Callable[[Diagnosis], bool] = lambda _: True) -> Diagnosis:
        """Removes and returns the next diagnosis that fits."""
        for place, diagnosis in enumerate(self._left):
            if fits(diagnosis):
                return self._left.pop(place)
        raise ValueError(
            f"ICD-10-CM tasks: all diagnoses set aside for {self.name!r} that fit are used up; "
            "ask for fewer dialogues."
        )


def _grouped(diagnoses: Iterable[Diagnosis], field: str) -> dict[str, list[Diagnosis]]:
    """Lists of diagnoses by the value of a field, in order of appearance."""
    groups: dict[str, list[Diagnosis]] = {}
    for diagnosis in diagnoses:
        groups.setdefault(getattr(diagnosis, field), []).append(diagnosis)
    return groups


def _interleave(groups: Iterable[Iterable[Diagnosis]]) -> list[Diagnosis]:
    """The first of each group, then the second of each, and so on."""
    rounds = itertools.zip_longest(*groups)
    return [diagnosis for row in rounds for diagnosis in row if diagnosis is not None]


def _deal(seed: int) -> dict[str, _Deck]:
    """The decks; all diagnoses of one category are in the same."""
    rng, owners = random.Random(f"icd10/{seed}/deal"), itertools.cycle(_DECKS)
    hands: dict[str, list[Diagnosis]] = {name: [] for name in _DECKS}
    for chapter in _grouped(read_diagnoses(), "chapter").values():
        categories = list(_grouped(chapter, "category").values())
        for category in rng.sample(categories, len(categories)):
            hands[next(owners)] += category
    return {name: _Deck(name, seed, hand) for name, hand in hands.items()}


def _draw_facts(deck: _Deck, count: int) -> list[tuple[str, Diagnosis]]:
    """Pairs of a task and the diagnosis that it asks about."""
    tasks = itertools.islice(itertools.cycle(_KNOWLEDGE_TASKS), count)
    return [(task, deck.draw()) for task in tasks]


def _ask(
    deck: _Deck,
    facts: Iterable[tuple[str, Diagnosis]],
    words: Mapping[str, Sequence[str]],
    source: str = "icd10",
) -> list[Item]:
    """Questions, and for each four texts to weigh, the right one at each place in turn."""
    places = {task: itertools.cycle(range(4)) for task in words}
    items = []
    for task, diagnosis in facts:
        answer = getattr(diagnosis, task)
        options = _distractors(deck, diagnosis, task)
        options.insert(next(places[task]), answer)
        prompt = deck.rng.choice(words[task]).format(diagnosis)
        items.append(_item(f"ki-{source}-{task}-{diagnosis.code}", prompt, answer, task))
        items[-1]["eval"]["options"] = options
    return items


def _distractors(deck: _Deck, diagnosis: Diagnosis, task: str) -> list[str]:
    """Three wrong options: sibling blocks, or what three other chapters hold in that field."""
    if task == "block":
        siblings = _grouped(_grouped(read_diagnoses(), "chapter")[diagnosis.chapter], "block")
        return deck.rng.sample([block for block in siblings if block != diagnosis.block], 3)
    others = deck.rng.sample([name for name in deck.chapters if name != diagnosis.chapter], 3)
    return [getattr(deck.rng.choice(deck.chapters[name]), task) for name in others]


def _note(deck: _Deck, count: int) -> list[Item]:
    """Notes whose diagnoses are to be written in a strict form."""
    tasks = itertools.islice(itertools.cycle(_ALIGNMENT_TASKS), count)
    write = {"extract": _extract, "list": _list, "choose": _choose}
    return [write[task](deck) for task in tasks]


def _extract(deck: _Deck) -> Item:
    """One diagnosis, typed carelessly, becomes ``code | title``."""
    diagnosis = deck.draw(lambda d: d.is_billable)
    note = deck.rng.choice(_NOTES).format(_typed(deck.rng, diagnosis))
    prompt = f'Write the diagnosis of this note as "code | title".\n{note}'
    return _coding("extract", diagnosis.code, prompt, _line(diagnosis))


def _list(deck: _Deck) -> Item:
    """Two diagnoses, typed carelessly, become a JSON list."""
    pair = [deck.draw(_is_short), deck.draw(_is_short)]
    note = deck.rng.choice(_NOTES_OF_TWO).format(*(_typed(deck.rng, d) for d in pair))
    prompt = f'List the diagnoses of this note as JSON with "code" and "title".\n{note}'
    answer = json.dumps([{"code": d.code, "title": d.title} for d in pair], ensure_ascii=False)
    return _coding("list", "+".join(d.code for d in pair), prompt, answer)


def _choose(deck: _Deck) -> Item:
    """Of three diagnoses of a chapter, the one a synonym stands for becomes ``code | title``."""
    short = _grouped(filter(_is_short, itertools.chain(*deck.chapters.values())), "chapter")
    chapters = {chapter for chapter, diagnoses in short.items() if len(diagnoses) >= 3}
    diagnosis = deck.draw(
        lambda d: _is_short(d) and d.chapter in chapters and bool(_short_terms(d))
    )
    near = [d for d in short[diagnosis.chapter] if d != diagnosis]
    candidates = deck.rng.sample([diagnosis, *deck.rng.sample(near, 2)], 3)
    lines = [f"- {_typed(deck.rng, d)}" for d in candidates]
    term = deck.rng.choice(_short_terms(diagnosis))
    prompt = "\n".join([f'Which of these means "{term}"? Write it as "code | title".', *lines])
    return _coding("choose", diagnosis.code, prompt, _line(diagnosis))


def _is_short(diagnosis: Diagnosis) -> bool:
    """Whether it may be coded and leaves room for others in one dialogue."""
    return diagnosis.is_billable and len(diagnosis.title) <= _LONGEST_LISTED


def _short_terms(diagnosis: Diagnosis) -> list[str]:
    """Synonyms that leave room for three candidates."""
    return [term for term in diagnosis.terms if len(term) <= _LONGEST_LISTED]


def _typed(rng: random.Random, diagnosis: Diagnosis) -> str:
    """A diagnosis as a hurried writer types it: no dot, no capitals, either way round."""
    plain = diagnosis.code.replace(".", "")
    code = rng.choice((diagnosis.code.lower(), plain, plain.lower()))
    title = rng.choice((diagnosis.title, diagnosis.title.lower()))
    return rng.choice(("{title} ({code})", "{code} {title}")).format(code=code, title=title)


def _line(diagnosis: Diagnosis) -> str:
    """The strict form of one diagnosis."""
    return f"{diagnosis.code} | {diagnosis.title}"


def _coding(task: str, key: str, prompt: str, answer: str) -> Item:
    """An alignment-required item."""
    item = _item(f"ar-icd10-{task}-{key}", prompt, answer, task)
    item["eval"]["format"] = "json" if task == "list" else "code_title"
    return item


def _item(key: str, prompt: str, answer: str, task: str) -> Item:
    """A dialogue of one question with what an evaluation needs."""
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    judged = {"answer": answer, "type": task, "sample_id": key}
    return {"id": key, "conversations": turns, "eval": judged}


def _for_training(item: Item) -> Item:
    """The item without its ``eval``."""
    return {name: value for name, value in item.items() if name != "eval"}
