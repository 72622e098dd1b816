"""Thirty `.bin` files that somebody might send who means harm; none is safe to unpickle."""

import io
import os
import pathlib
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any

import torch


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile_files(canary: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents; whoever runs their code makes the canary."""
    made = str(canary)
    calls = {
        "mkdir": _Call(os.mkdir, made),
        "system": _Call(os.system, f"touch {made}"),
        "popen": _Call(os.popen, f"touch {made}"),
        "eval": _Call(eval, f"__import__('os').mkdir({made!r})"),
        "exec": _Call(exec, f"import os; os.mkdir({made!r})"),
        "open": _Call(open, made, "w"),
        "import": _Call(__import__, "antigravity"),
        "makedirs": _Call(os.makedirs, f"{made}/deep"),
        "torch.load": _Call(torch.load, made),
        "path": _Call(pathlib.Path.touch, canary),
    }
    tensor = torch.ones(2)
    for name, call in calls.items():
        yield f"pickle of {name}", pickle.dumps({"a": call})
        yield f"archive of {name}", _saved({"a": tensor, "b": [{"c": (call,)}]})
    yield (
        "legacy file",
        _saved({"a": tensor, "b": calls["mkdir"]}, _use_new_zipfile_serialization=False),
    )
    yield "legacy tar", _tar(pickle.dumps(calls["mkdir"]), made)
    yield "protocol 0", pickle.dumps(calls["mkdir"], protocol=0)
    yield "nested without end", b"\x80\x02" + b"(" * 100_000 + b"."
    yield "path traversal", _zip({"../../canary": b"x", "a/data.pkl": pickle.dumps({})}, made)
    yield "absolute path", _zip({made: b"x"}, made)
    yield "symbolic link", _link(made)
    yield "zip bomb", _zip({"a/data.pkl": bytes(400 * 2**20)}, made)
    yield "claims exabytes", _claim(2**60)
    yield "recursion of containers", _loop()


def _saved(content: Any, **how: Any) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def _zip(members: dict[str, bytes], made: str) -> bytes:
    """A compressed archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.comment = made.encode()
    return file.getvalue()


def _link(made: str) -> bytes:
    """An archive whose pickle is a symbolic link out of it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        entry = zipfile.ZipInfo("a/data.pkl")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, made)
    return file.getvalue()


def _tar(content: bytes, made: str) -> bytes:
    """The oldest format of torch, with a member that points out of it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("pickle", "storages", "tensors", f"../..{made}"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _claim(nbytes: int) -> bytes:
    """A pickle whose string says that it is longer than any memory."""
    return b"\x80\x04\x8e" + nbytes.to_bytes(8, "little") + b"x."


def _loop() -> bytes:
    """A dict of lists that hold themselves, instead of tensors."""
    inner: list[Any] = []
    inner.append(inner)
    return _saved({"a": inner})
