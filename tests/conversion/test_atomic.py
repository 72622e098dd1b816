"""A folder is there whole or not at all."""

import os
import pathlib

import pytest

from medcare_jax.conversion.atomic import _lock, new_folder
from medcare_jax.conversion.tensors import ConversionError


def test_appears_with_everything_at_the_end(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "deep" / "model"
    with new_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        assert not target.exists()
        assert folder.parent == target.parent
    assert (target / "inner" / "file").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_nothing(tmp_path: pathlib.Path, error: BaseException) -> None:
    def write() -> None:
        with new_folder(tmp_path / "model") as folder:
            (folder / "file").write_text("x")
            raise error

    with pytest.raises(type(error)):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: pathlib.Path) -> None:
    left = tmp_path / ".model.partial"
    left.mkdir()
    (left / "stale").write_text("x")
    with new_folder(tmp_path / "model"):
        pass
    assert list((tmp_path / "model").iterdir()) == []


@pytest.mark.parametrize("kind", ["a link", "a link to nothing", "a file"])
def test_what_stands_in_the_place_of_the_partial_folder_is_kept(
    tmp_path: pathlib.Path, kind: str
) -> None:
    """A link's folder is somebody else's: it would have been emptied."""
    partial, kept = tmp_path / ".model.partial", tmp_path / "elsewhere" / "kept"
    kept.parent.mkdir()
    kept.write_text("x")
    if kind == "a file":
        partial.write_text("x")
    else:
        partial.symlink_to(kept.parent if kind == "a link" else tmp_path / "nothing")
    with pytest.raises(ConversionError, match=r"\.model\.partial is a link or a file"):
        with new_folder(tmp_path / "model"):
            pass
    assert kept.read_text() == "x"
    assert {path.name for path in tmp_path.iterdir()} == {partial.name, "elsewhere"}


def test_a_target_that_is_a_link_to_nothing_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConversionError, match="exists; name another"):
        with new_folder(tmp_path / "model"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_existing_target_is_refused_and_kept(tmp_path: pathlib.Path) -> None:
    (tmp_path / "kept").write_text("x")
    with pytest.raises(ConversionError, match="exists; name another"), new_folder(tmp_path):
        pass
    assert (tmp_path / "kept").exists()


def test_a_folder_that_another_is_writing_is_left_alone(tmp_path: pathlib.Path) -> None:
    with new_folder(tmp_path / "model") as folder:
        (folder / "file").write_text("x")
        with pytest.raises(ConversionError, match="being written by another process"):
            with new_folder(tmp_path / "model"):
                pass
        assert (folder / "file").read_text() == "x"
    assert (tmp_path / "model" / "file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_lock_that_came_too_late_is_none(tmp_path: pathlib.Path) -> None:
    """Who opened the folder before it took its name must not empty it afterwards."""
    partial = tmp_path / ".model.partial"
    with new_folder(tmp_path / "model") as folder:
        (folder / "file").write_text("x")
        late = os.open(partial, os.O_RDONLY)
    assert not _lock(late, partial)
    partial.mkdir()  # and no more so when the next one writes under that name
    assert not _lock(late, partial)
    os.close(late)
