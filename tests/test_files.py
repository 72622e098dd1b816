"""Files are whole or absent."""

import hashlib
import os
import stat

import pytest

from medcare_jax.files import PRIVATE, file_digest, open_own, read_json, write_json, write_text


def test_json_round_trip_and_nothing_beside_it(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": [1, "é"]})
    assert read_json(tmp_path / "new" / "a.json") == {"b": [1, "é"]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    assert read_json(tmp_path / "absent.json") is None


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_private_file_never_was_anyone_elses(tmp_path, monkeypatch):
    modes = []
    fsync = os.fsync

    def look(handle):
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", look)
    torn = tmp_path / ".a.txt.part"  # of a killed process
    torn.write_text("old")
    torn.chmod(0o644)
    write_text(tmp_path / "a.txt", "text", mode=PRIVATE)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o600
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_file_that_is_gone_on_with_is_no_link_and_becomes_private(tmp_path):
    path, link = tmp_path / "a.part", tmp_path / "link.part"
    path.write_text("old")
    path.chmod(0o644)
    link.symlink_to(path)
    with pytest.raises(OSError, match="it is a link"):
        open_own(link, mode=PRIVATE)
    with open_own(path, mode=PRIVATE) as file:
        assert file.read() == b"old"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
