"""A report lists every file, and verifying compares every file."""

import hashlib
import json
import pathlib

import pytest

from medcare_jax.conversion.report import REPORT_NAME, verify, write_report
from medcare_jax.conversion.tensors import ConversionError


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.bin").write_bytes(b"a")
    (tmp_path / "sub/b.txt").write_bytes(b"b")
    known = {"a.bin": hashlib.sha256(b"a").hexdigest()}
    write_report(tmp_path, {"target": "x"}, known)
    return tmp_path


def test_content_and_digests(folder: pathlib.Path) -> None:
    report = verify(folder)
    assert report == json.loads((folder / REPORT_NAME).read_text())
    assert report == {
        "target": "x",
        "files": {
            "a.bin": hashlib.sha256(b"a").hexdigest(),
            "sub/b.txt": hashlib.sha256(b"b").hexdigest(),
        },
    }


def test_what_was_hashed_while_it_was_written_is_not_read_again(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_bytes(b"other")
    write_report(tmp_path, {}, {"a": hashlib.sha256(b"a").hexdigest()})
    with pytest.raises(ConversionError, match="1 of 1 files"):
        verify(tmp_path)


def test_one_flipped_bit(folder: pathlib.Path) -> None:
    (folder / "sub/b.txt").write_bytes(b"c")
    with pytest.raises(ConversionError, match=r"1 of 2 files.*\n  ! sub/b\.txt"):
        verify(folder)


def test_a_report_that_is_not_ours(tmp_path: pathlib.Path) -> None:
    (tmp_path / REPORT_NAME).write_text("{}")
    with pytest.raises(ConversionError, match="lists no files"):
        verify(tmp_path)
