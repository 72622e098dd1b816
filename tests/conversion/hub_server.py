"""A stand-in for the hub's HTTP interface on this machine: enough to fetch and to push."""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

_FILE = re.compile(r"/(?:(datasets)/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")
_INFO = re.compile(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([^/]+))?")


class Pushed(NamedTuple):
    """One commit that came in."""

    repository: str
    revision: str
    files: dict[str, bytes]


class Hub:
    """What the stand-in holds and has seen.

    Attributes:
      repositories: Files by repository (`datasets/` before data sets) and revision.
      requests: Method and path of each request, in order.
      pushed: Commits that came in.
      cut_after: Bytes after which the next file's transfer breaks off, once; None: never.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []
        self.pushed: list[Pushed] = []
        self.cut_after: int | None = None
        self.endpoint = ""

    def files(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files, of a branch or of a commit."""
        key = f"datasets/{name}" if kind == "datasets" else name
        for branch, files in self.repositories.get(key, {}).items():
            commit = hashlib.sha1(f"{key}{branch}".encode()).hexdigest()
            if revision in (branch, commit):
                return commit, files
        return None

    def fetched(self) -> list[str]:
        """Names of the files whose bytes were asked for."""
        return [
            match[4] for line in self.requests if (match := _FILE.fullmatch(line[4:])) is not None
        ]


@contextmanager
def serve() -> Iterator[Hub]:
    """A running stand-in; `endpoint` is where."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Silent."""

        def answer(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer_json(self, content: Any, code: int = 200, **headers: str) -> None:
            self.answer(
                code, json.dumps(content).encode(), Content_Type="application/json", **headers
            )

        def missing(self, what: str) -> None:
            self.answer_json(
                {"error": f"{what} not found"},
                404,
                X_Error_Code=f"{what}NotFound",
                X_Error_Message=f"{what} not found",
            )

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}" if self.command == "GET" else "")
            if match := _FILE.fullmatch(path):
                self.send_file(*match.groups())
            elif match := _INFO.fullmatch(path):
                self.send_info(*match.groups())
            else:
                self.missing("Repo")

        def send_info(self, kind: str, name: str, what: str | None, revision: str | None) -> None:
            key = f"datasets/{name}" if kind == "datasets" else name
            if key not in hub.repositories:
                return self.missing("Repo")
            found = hub.files(kind, name, revision or "main")
            if found is None:
                return self.missing("Revision")
            commit, files = found
            if what == "tree":
                rows = [
                    {"type": "file", "path": path, "size": len(body), "oid": _oid(body)}
                    for path, body in files.items()
                ]
                return self.answer_json(rows)
            siblings = [{"rfilename": path} for path in files]
            self.answer_json({"id": name, "sha": commit, "private": False, "siblings": siblings})

        def send_file(self, kind: str | None, name: str, revision: str, path: str) -> None:
            found = hub.files(kind or "models", name, revision)
            if found is None or path not in found[1]:
                return self.missing("Entry")
            commit, body = found[0], found[1][path]
            headers = {"ETag": f'"{_oid(body)}"', "X_Repo_Commit": commit}
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if self.command == "GET" and hub.cut_after is not None:
                cut, hub.cut_after = body[: hub.cut_after], None
                self.send_response(200)
                for key, value in {"Content_Length": str(len(body)), **headers}.items():
                    self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(cut)
                self.close_connection = True
                return None
            if asked and int(asked[1]) < len(body):
                part = body[int(asked[1]) :]
                span = f"bytes {asked[1]}-{len(body) - 1}/{len(body)}"
                hub.requests[-1] += f" from {asked[1]}"
                return self.answer(206, part, Content_Range=span, **headers)
            self.answer(200, body, **headers)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            hub.requests.append(f"POST {path}")
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                hub.repositories.setdefault(name, {"main": {}})
                return self.answer_json({"url": f"{hub.endpoint}/{name}", "name": name})
            if path == "/api/validate-yaml":
                return self.answer_json({"errors": [], "warnings": []})
            match = re.fullmatch(
                r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit|branch)/(\w+)", path
            )
            if match is None:
                return self.missing("Repo")
            branches = hub.repositories.get(match[1], {})
            if match[2] == "branch":
                code = 409 if match[3] in branches else 200
                branches.setdefault(match[3], {})
                return self.answer_json({}, code)
            if match[3] not in branches:
                return self.missing("Revision")
            if match[2] == "preupload":
                rows = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self.answer_json({"files": rows})
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            hub.pushed.append(Pushed(match[1], match[3], files))
            url = f"{hub.endpoint}/{match[1]}/commit/abc"
            self.answer_json({"success": True, "commitUrl": url, "commitOid": "abc"})

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _oid(body: bytes) -> str:
    """What stands for a file's content."""
    return hashlib.sha1(body).hexdigest()
