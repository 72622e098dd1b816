"""JSON files beside weights: objects or a message that names the file."""

import pathlib

import pytest

from medcare_jax.conversion.metadata import read_object, write_object
from medcare_jax.conversion.tensors import ConversionError


def test_there_and_back_with_the_same_bytes(tmp_path: pathlib.Path) -> None:
    write_object(tmp_path / "a.json", {"b": 1, "a": ["é", None]})
    write_object(tmp_path / "b.json", {"a": ["é", None], "b": 1})
    assert read_object(tmp_path / "a.json") == {"a": ["é", None], "b": 1}
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"config\.json is not JSON"),
        (b"\xff\xfe", r"config\.json is not JSON"),
        (b"[1]", r"config\.json holds a list, not an object"),
        (b"[" * 100_000, r"config\.json is not JSON: nested too deeply"),
    ],
)
def test_what_is_no_object(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        read_object(tmp_path / "config.json")


def test_an_absent_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there"):
        read_object(tmp_path / "config.json")
