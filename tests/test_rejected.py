"""What is set aside stays, however often it happens."""

from medcare_jax.rejected import set_aside


def make(folder, content):
    folder.mkdir()
    (folder / "file").write_text(content)
    return folder


def test_nothing_that_was_set_aside_before_is_lost(tmp_path):
    place = tmp_path / "rejected" / "120"
    for content in ("first", "second", "third"):
        moved = set_aside(make(tmp_path / "120", content), place)
        assert not (tmp_path / "120").exists()
        assert (moved / "file").read_text() == content
    found = {path.name: (path / "file").read_text() for path in place.parent.iterdir()}
    assert found == {"120": "first", "120.2": "second", "120.3": "third"}
