"""JSON files beside weights: objects or a message that names the file."""

import os
import pathlib

import pytest

from medcare_jax.conversion.metadata import naming, read_object, write_object
from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.models.families import UnsupportedModelError


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
        (b'{"a": {"b": 1, "b": 2}}', r"config\.json lists b twice"),
        (b'{"a": NaN}', r"config\.json is not JSON: NaN is not a JSON value"),
        (b'{"a": [-Infinity]}', r"config\.json is not JSON: -Infinity is not a JSON value"),
        (b'{"a": %s}' % (b"9" * 5000), r"config\.json is not JSON: "),
    ],
)
def test_what_is_no_object(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        read_object(tmp_path / "config.json")


def test_an_absent_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there"):
        read_object(tmp_path / "config.json")


def test_what_is_no_file_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConversionError, match=r"config\.json is not a file"):
        read_object(tmp_path / "config.json")


def test_errors_of_fields_carry_the_files_name() -> None:
    with pytest.raises(ConversionError, match="x.json: too large; correct it"):
        with naming(pathlib.Path("x.json")):
            raise OverflowError("too large")
    with pytest.raises(UnsupportedModelError, match="x.json: a layer"):
        with naming(pathlib.Path("x.json")):
            raise UnsupportedModelError("a layer")
