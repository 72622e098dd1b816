"""The journal: what was written is found again, whatever a kill left of the last line."""

import pytest

from medcare_jax.evaluation.journal import JOURNAL_FILE, Journal, write_samples
from medcare_jax.evaluation.results import ResultsError

A, B = ("medqa", "generate", 0), ("medqa", "generate", 1)


def filled(folder, key="k"):
    journal = Journal(folder, key)
    journal.append(A, [{"id": "甲"}])
    journal.append(B, [{"id": "b"}])
    journal.close()
    return folder / JOURNAL_FILE


def test_chunks_are_found_again(tmp_path):
    filled(tmp_path)
    journal = Journal(tmp_path, "k")
    assert A in journal
    assert B in journal
    assert ("cmb", *A[1:]) not in journal
    assert journal.samples(A) == [{"id": "甲"}]
    assert journal.samples(B) == [{"id": "b"}]
    journal.discard()
    assert list(tmp_path.iterdir()) == []


def test_any_torn_last_line_is_done_again(tmp_path):
    path = filled(tmp_path)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in {last, last + 1, (last + len(whole)) // 2, len(whole) - 1}:
        path.write_bytes(whole[:cut])
        journal = Journal(tmp_path, "k")
        assert A in journal
        assert B not in journal
        journal.append(B, [{"id": "b"}])
        journal.close()
        assert path.read_bytes() == whole


def test_a_journal_of_another_evaluation_is_begun_anew(tmp_path):
    path = filled(tmp_path, "old")
    for torn in (path.read_bytes(), path.read_bytes()[:5], b""):
        path.write_bytes(torn)
        journal = Journal(tmp_path, "new")
        assert A not in journal
        journal.close()
        assert path.read_text() == '{"key": "new"}\n'


def test_damage_before_the_last_line_is_refused(tmp_path):
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'{"chunk"', b"#", 1))
    with pytest.raises(ResultsError, match="part:2: damaged"):
        Journal(tmp_path, "k")


@pytest.mark.parametrize("line", ["{}", "5", "[]", "null", '{"chunk": 1}'])
def test_a_line_that_is_no_chunk_is_refused(tmp_path, line):
    path = filled(tmp_path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ResultsError, match=r"part:\d: damaged"):
        Journal(tmp_path, "k")


def test_only_the_writer_writes(tmp_path):
    path = filled(tmp_path)
    before = path.read_bytes()
    reader = Journal(tmp_path, "k", is_writer=False)
    reader.append(("cmb", "generate", 0), [])
    reader.discard()
    assert path.read_bytes() == before


def test_medical_text_is_for_its_owner_alone(tmp_path):
    assert filled(tmp_path).stat().st_mode & 0o777 == 0o600
    write_samples(tmp_path, [{"id": "甲"}])
    path = tmp_path / "samples.jsonl"
    assert path.read_text() == '{"id": "甲"}\n'
    assert path.stat().st_mode & 0o777 == 0o600
