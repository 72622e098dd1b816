"""Demo tasks: reproducible, without leaks, without a way to guess, and strict where they say so."""

import hashlib
import json
import random
import re
import string
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest

from medcare_jax.data import icd10
from medcare_jax.data.classification import read_diagnoses
from medcare_jax.data.icd10 import make_icd10_tasks, write_icd10_tasks
from medcare_jax.data.records import open_records

NAMES = ["1-stage/train", "2-stage/train", "test/unseen", "test/retained", "test/coding"]
TRAIN, TESTS = NAMES[:2], NAMES[2:]
SMALL = {"mka_knowledge": 37, "mka_alignment": 11, "da_alignment": 13, "test": 8}
STRICT_LINE = re.compile(r"[A-Z]\d[0-9A-Z](\.[0-9A-Z]{1,2})? \| \S.*\S")


@pytest.fixture(scope="module")
def tasks():
    return make_icd10_tasks(seed=0)


def normalised(text):
    kept = unicodedata.normalize("NFKC", text).lower()
    return "".join(c for c in kept if not c.isspace() and unicodedata.category(c)[0] not in "PS")


def question(item):
    return item["conversations"][0]["value"]


def answer(item):
    return item["conversations"][1]["value"]


def codes(item):
    """The codes that an item asks for."""
    return item["id"].split("-")[-1].split("+")


def test_sizes_are_as_asked(tasks):
    assert [len(tasks[name]) for name in NAMES] == [1040, 320, 120, 120, 120]
    small = make_icd10_tasks(seed=0, **SMALL)
    assert [len(small[name]) for name in NAMES] == [48, 13, 8, 8, 8]


def test_no_test_question_is_in_training(tasks):
    asked = {normalised(question(item)) for name in TRAIN for item in tasks[name]}
    tested = {normalised(question(item)) for name in TESTS for item in tasks[name]}
    assert not asked & tested
    assert normalised(question(tasks["1-stage/train"][5])) in asked  # the check can fail


def test_no_question_occurs_twice(tasks):
    questions = Counter(normalised(question(i)) for name in NAMES for i in tasks[name])
    assert questions.most_common(1)[0][1] == 1


def test_unseen_diagnoses_have_no_relative_in_training(tasks):
    trained = {code[:3] for name in TRAIN for item in tasks[name] for code in codes(item)}
    titles = {d.code: d.title for d in read_diagnoses()}
    text = "\n".join(question(i) + answer(i) for name in TRAIN for i in tasks[name])
    for name in ("test/unseen", "test/coding"):
        for code in (code for item in tasks[name] for code in codes(item)):
            assert code[:3] not in trained
            assert f'"{titles[code]}"' not in text
            assert f"- {titles[code]}\n" not in text


def test_retained_facts_were_taught_in_other_words(tasks):
    taught = {(i["id"], answer(i)) for i in tasks["1-stage/train"]}
    for item in tasks["test/retained"]:
        assert (item["id"].replace("-reworded", ""), answer(item)) in taught


@pytest.mark.parametrize("name", ["test/unseen", "test/retained"])
def test_options_hold_the_answer_at_every_place_alike(tasks, name):
    places = Counter()
    for item in tasks[name]:
        gold, options = item["eval"]["answer"], item["eval"]["options"]
        assert len(set(options)) == 4
        assert gold == answer(item)
        places[item["eval"]["type"], options.index(gold)] += 1
    for task in ("chapter", "block", "title", "category"):
        assert len({places[task, place] for place in range(4)}) == 1


def test_an_answer_is_as_common_as_a_distractor(tasks):
    """Who knows the options only, and picks what training had most often, is at chance."""
    rights = Counter(answer(i) for i in tasks["1-stage/train"] if "-chapter-" in i["id"])
    assert len(rights) == 19
    assert max(rights.values()) <= 1.2 * min(rights.values())
    unseen = [i["eval"] for i in tasks["test/unseen"] if i["eval"]["type"] == "chapter"]
    guesses = [max(e["options"], key=lambda o: rights[o]) == e["answer"] for e in unseen]
    assert sum(guesses) / len(guesses) < 0.4


def test_answers_are_true(tasks):
    by_code = {d.code: d for d in read_diagnoses()}
    siblings = {(d.chapter, d.block) for d in read_diagnoses()}
    for item in tasks["test/unseen"] + tasks["test/retained"]:
        task, diagnosis = item["eval"]["type"], by_code[codes(item)[0]]
        assert item["eval"]["answer"] == getattr(diagnosis, task)
        assert (diagnosis.code if task == "title" else diagnosis.title) in question(item)
        if task == "block":
            assert {(diagnosis.chapter, block) for block in item["eval"]["options"]} <= siblings


def test_coding_answers_follow_from_the_note_and_are_strict(tasks):
    by_code = {d.code: d for d in read_diagnoses()}
    items = [i for name in ("2-stage/train", "test/coding") for i in tasks[name]]
    items += [i for i in tasks["1-stage/train"] if i["id"].startswith("ar-")]
    assert len(items) == 680
    for item in items:
        diagnoses = [by_code[code] for code in codes(item)]
        task = item["id"].split("-")[2]
        if task == "list":
            expected = [{"code": d.code, "title": d.title} for d in diagnoses]
            assert json.loads(answer(item)) == expected
            assert len(diagnoses) == 2
        else:
            assert answer(item) == f"{diagnoses[0].code} | {diagnoses[0].title}"
            assert STRICT_LINE.fullmatch(answer(item))
        note = question(item).lower().replace(".", "")
        for diagnosis in diagnoses:
            assert diagnosis.is_billable
            assert diagnosis.code.lower().replace(".", "") in note
            assert diagnosis.title.lower().replace(".", "") in note
        assert answer(item) not in question(item)


def test_candidates_of_one_chapter_and_one_meaning(tasks):
    by_plain = {d.code.replace(".", "").lower(): d for d in read_diagnoses()}
    for item in (i for i in tasks["test/coding"] if i["eval"]["type"] == "choose"):
        term = question(item).split('"')[1]
        lines = question(item).lower().replace(".", "").split("\n- ")[1:]
        words = [[w.strip("()") for w in line.split()] for line in lines]
        found = [next(by_plain[w] for w in (ws[0], ws[-1]) if w in by_plain) for ws in words]
        assert len({d.code for d in found}) == 3
        assert len({d.chapter for d in found}) == 1
        assert [d.code for d in found if term in d.terms] == codes(item)


def test_forms_and_keys_of_items(tasks):
    for name in NAMES:
        assert len({item["id"] for item in tasks[name]}) == len(tasks[name])
        for item in tasks[name]:
            assert [turn["from"] for turn in item["conversations"]] == ["human", "gpt"]
            assert all(turn["value"] == turn["value"].strip() for turn in item["conversations"])
            assert not re.search(r"[{}]", question(item))
            assert len(question(item) + answer(item)) < 520
            assert ("eval" in item) == name.startswith("test/")
    assert not any(item["id"].startswith("ki-") for item in tasks["2-stage/train"])
    forms = Counter((i["eval"]["type"], i["eval"]["format"]) for i in tasks["test/coding"])
    assert forms == {
        ("extract", "code_title"): 40,
        ("list", "json"): 40,
        ("choose", "code_title"): 40,
    }


@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_every_so_manieth_item_is_a_fair_sample(tasks, step):
    kinds = Counter(item["eval"]["type"] for item in tasks["test/unseen"][::step])
    assert len(kinds) >= 3
    assert kinds["chapter"] <= 0.8 * kinds.total()


def test_seed_decides_every_byte(tmp_path):
    def digests(folder, seed):
        paths = write_icd10_tasks(folder, seed=seed, **SMALL)
        assert list(paths) == NAMES
        assert sorted(f for f in folder.rglob("*") if f.is_file()) == sorted(paths.values())
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths.values()]

    random.seed(7)
    first = digests(tmp_path / "a", 3)
    random.seed(8)
    assert digests(tmp_path / "a", 3) == first  # written over
    assert not set(digests(tmp_path / "b", 4)) & set(first)


def test_bytes_do_not_depend_on_the_process(tmp_path):
    program = (
        "import sys; from medcare_jax.data import icd10;"
        "assert 'simple_icd_10_cm' not in sys.modules;"
        f"icd10.write_icd10_tasks(sys.argv[1], seed=3, **{SMALL})"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "other")]
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run(command, check=True, env=environment)
    for name, path in write_icd10_tasks(tmp_path / "own", seed=3, **SMALL).items():
        assert path.read_bytes() == (tmp_path / "other" / f"{name}.json").read_bytes()


def test_files_are_medcare_data(tmp_path):
    for name, path in write_icd10_tasks(tmp_path, seed=1, **SMALL).items():
        records = open_records(path)
        assert len(records) == len(make_icd10_tasks(seed=1, **SMALL)[name])
        assert all((record.evaluation is not None) == (name in TESTS) for record in records)


@pytest.mark.parametrize("change", [{"test": 0}, {"mka_alignment": -1}, {"test": 38}])
def test_sizes_that_cannot_be_are_refused(change):
    came = ", ".join(f"{name}={size}" for name, size in (SMALL | change).items())
    with pytest.raises(ValueError, match=came):
        make_icd10_tasks(seed=0, **SMALL | change)


def test_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="'mka_notes'.* used up"):
        make_icd10_tasks(seed=0, **SMALL | {"mka_alignment": 900})


def test_every_wording_names_what_it_asks_about():
    for words in (icd10._TAUGHT_WORDS, icd10._OTHER_WORDS):
        assert set(words) == set(icd10._KNOWLEDGE_TASKS)
        for task, stems in words.items():
            for text in stems:
                fields = [field for _, field, _, _ in string.Formatter().parse(text) if field]
                assert fields == ["0.code" if task == "title" else "0.title"]
