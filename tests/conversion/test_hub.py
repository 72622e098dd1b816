"""Names of the hub, against a stand-in of its HTTP interface."""

import pathlib
from collections.abc import Iterator

import huggingface_hub.constants
import pytest

from medcare_jax.conversion import hub
from medcare_jax.conversion.tensors import ConversionError
from tests.conversion.hub_server import Hub, serve

MODEL = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "tokenizer.json": b"{ }",
    "merges.txt": b"a b",
    "chat_template.jinja": b"x",
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"import os",
    "README.md": b"card",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[Hub]:
    with serve() as found:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", found.endpoint)
        template = found.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        found.repositories["org/model"] = {
            "main": MODEL,
            "v1": {"config.json": b'{"old": 1}', "model.safetensors": b"old"},
        }
        yield found


def test_weights_json_and_tokenizer_nothing_else(server: Hub) -> None:
    folder = hub.locate("org/model")
    names = {"config.json", "model.safetensors", "tokenizer.json"}
    names |= {"merges.txt", "chat_template.jinja"}
    assert {path.name for path in folder.iterdir()} == names == set(server.fetched())
    assert (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_revision_is_another_folder(server: Hub) -> None:
    assert (hub.locate("org/model@v1") / "model.safetensors").read_bytes() == b"old"
    assert (hub.locate("org/model@main") / "config.json").read_bytes() == b"{}"


def test_the_cache_is_used_also_offline(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.locate("org/model")
    count = len(server.fetched())
    assert hub.locate("org/model") == folder
    assert len(server.fetched()) == count
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    requests = len(server.requests)
    assert hub.locate("org/model") == folder
    with pytest.raises(FileNotFoundError, match=r"org/model .*revision v1.* cannot be had"):
        hub.locate("org/model@v1")
    assert len(server.requests) == requests


def test_a_transfer_that_breaks_off_goes_on(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)
    server.repositories["org/model"]["main"] = {"model.safetensors": MODEL["model.safetensors"]}
    server.cut_after = 1500
    folder = hub.locate("org/model")
    assert (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert any("model.safetensors from 1500" in line for line in server.requests)


@pytest.mark.parametrize("name", ["org/gone", "org/model@gone"])
def test_what_the_hub_has_not(server: Hub, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="is no path here, and as a name of the hub"):
        hub.locate(name)


def test_a_path_comes_first(server: Hub, tmp_path: pathlib.Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org/model").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert hub.locate("org/model") == pathlib.Path("org/model")
    assert server.requests == []


@pytest.mark.parametrize("name", ["model", "../model", "a/b/c", "/abs", "org/.."])
def test_what_is_no_name_is_left_a_path(name: str) -> None:
    assert hub.parse(name) is None
    assert hub.locate(name) == pathlib.Path(name)


def test_push(server: Hub, tmp_path: pathlib.Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("README.md", "model.safetensors"):
        (tmp_path / "out" / name).write_bytes(MODEL[name])
    url = hub.push(tmp_path / "out", "me/new")
    assert url.startswith(f"{server.endpoint}/me/new/commit")
    expected = {name: MODEL[name] for name in ("README.md", "model.safetensors")}
    assert server.pushed == [("me/new", "main", expected)]
    with pytest.raises(ConversionError, match="expected ORG/NAME"):
        hub.push(tmp_path / "out", "new")


def test_a_push_to_a_branch_makes_it(server: Hub, tmp_path: pathlib.Path) -> None:
    (tmp_path / "README.md").write_bytes(MODEL["README.md"])
    for _ in range(2):
        hub.push(tmp_path, "me/new@draft")
    assert [(each.repository, each.revision) for each in server.pushed] == [("me/new", "draft")] * 2


def test_data_is_fetched_into_a_folder(server: Hub, tmp_path: pathlib.Path) -> None:
    files = {"1-stage/train.json": b"[]", "test/A.json": b"[ ]", "x.py": b"no", "R.md": b"card"}
    server.repositories["datasets/org/data"] = {"main": files}
    found = hub.fetch_data("org/data", tmp_path / "data")
    assert found == [tmp_path / "data/1-stage/train.json", tmp_path / "data/test/A.json"]
    assert found[0].read_bytes() == b"[]"
    assert not (tmp_path / "data/1-stage/train.json").is_symlink()
    assert not (tmp_path / "data/x.py").exists()
    for name, message in (("org/gone", "cannot be had"), ("data", "is no name of the hub")):
        with pytest.raises((FileNotFoundError, ConversionError), match=message):
            hub.fetch_data(name, tmp_path / "other")
    assert not (tmp_path / "other").exists()
