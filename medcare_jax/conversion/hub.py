"""Names of the Hugging Face hub wherever a path may stand: `ORG/NAME` or `ORG/NAME@REVISION`."""

import pathlib
import re
import shutil
from typing import NamedTuple

from medcare_jax.conversion.atomic import new_folder
from medcare_jax.conversion.tensors import ConversionError

# Weights, JSON and what tokenizers consist of; never code, never pickles.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model")
DATA_FILES = ("*.json", "*.jsonl", "*.md")

_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


class HubName(NamedTuple):
    """A repository and the revision of it; None is the hub's default branch."""

    repository: str
    revision: str | None


def parse(name: str) -> HubName | None:
    """What a name says, or None if it cannot be one of the hub.

    >>> parse("Qwen/Qwen1.5-1.8B-Chat@main")
    HubName(repository='Qwen/Qwen1.5-1.8B-Chat', revision='main')
    >>> parse("models/sub/folder") is None
    True
    """
    match = _NAME.fullmatch(name)
    if match is None or any(part.strip(".") == "" for part in match[1].split("/")):
        return None
    return HubName(match[1], match[2])


def label(name: str) -> str:
    """What reports and cards call what a name stands for.

    >>> label("models/qwen/tiny"), label("Qwen/Qwen3-8B@main")
    ('tiny', 'Qwen/Qwen3-8B@main')
    """
    path = pathlib.Path(name)
    return path.name if path.exists() or parse(name) is None else name


def locate(name: str) -> pathlib.Path:
    """Where a model lies: the path itself if it is there, else the hub's copy of that name.

    The hub's files are fetched into its usual cache, which `HF_HOME` moves; what is in it is not
    fetched again, and with `HF_HUB_OFFLINE=1` nothing is.

    Raises:
      FileNotFoundError: Neither a path nor a name of the hub that can be had.
    """
    path = pathlib.Path(name)
    if path.exists() or (found := parse(name)) is None:
        return path
    return fetch(found, kind="model", patterns=MODEL_FILES)


def fetch(name: HubName, *, kind: str, patterns: tuple[str, ...]) -> pathlib.Path:
    """Fetches a repository's files of the given patterns, and says where they are.

    Args:
      name: Repository and revision.
      kind: `model` or `dataset`.
      patterns: Which files; nothing else is asked for.

    Raises:
      FileNotFoundError: The hub cannot be reached or has no such repository or revision.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name.repository,
                repo_type=kind,
                revision=name.revision,
                allow_patterns=list(patterns),
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        text = str(error).strip().splitlines()
        raise FileNotFoundError(
            f"{name.repository} is no path here, and as a name of the hub (revision "
            f"{name.revision or 'default'}) it cannot be had: "
            f"{text[0] if text else type(error).__name__}"
        ) from None


def fetch_data(name: str, target: pathlib.Path) -> list[pathlib.Path]:
    """Fetches a data set's JSON files into a new folder; it appears whole or not at all.

    Args:
      name: `ORG/NAME` or `ORG/NAME@REVISION`.
      target: The folder; must not exist.

    Returns:
      The files, sorted.

    Raises:
      ConversionError: Not a name of the hub; the target exists; no JSON file there.
      FileNotFoundError: The hub cannot be reached or has no such data set.
    """
    found = parse(name)
    if found is None:
        raise ConversionError(f"{name!r} is no name of the hub; expected ORG/NAME or ORG/NAME@REV")
    with new_folder(target) as folder:
        # By way of the cache, so that what was fetched before a break is not fetched again.
        source = fetch(found, kind="dataset", patterns=DATA_FILES)
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            copy = folder / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        names = [path.relative_to(folder) for path in folder.rglob("*.json*")]
        if not names:
            raise ConversionError(f"{name} holds no JSON file")
    return sorted(target / path for path in names)


def parse_push(name: str) -> HubName:
    """Where a folder is to be uploaded; asked before the work that makes the folder.

    Raises:
      ConversionError: Not a name of the hub.
    """
    found = parse(name)
    if found is None:
        raise ConversionError(f"--push={name}: expected ORG/NAME or ORG/NAME@BRANCH")
    return found


def push(folder: pathlib.Path, name: str) -> str:
    """Uploads a folder as a repository of that name, made (private) if it is not there.

    A branch that is not there is made too.

    Returns:
      The address of the commit.

    Raises:
      ConversionError: Not a name of the hub.
      OSError: The hub refused or cannot be reached.
    """
    import huggingface_hub

    found = parse_push(name)
    hub = huggingface_hub.HfApi()
    hub.create_repo(found.repository, private=True, exist_ok=True)
    if found.revision is not None:
        hub.create_branch(found.repository, branch=found.revision, exist_ok=True)
    commit = hub.upload_folder(
        repo_id=found.repository,
        folder_path=folder,
        revision=found.revision,
        commit_message=f"Upload {folder.name}",
    )
    return str(commit.commit_url)
