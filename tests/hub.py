"""A Hugging Face Hub on loopback: the routes of its HTTP API by which pinned data sets and models are found and
fetched, and those by which a model is pushed, as huggingface_hub 2.4.0 asks for them.

Only the other side is a stand-in; what asks is the real `huggingface_hub` and `datasets`. It has no Xet storage, which
the client takes for granted: who pushes here sets HF_HUB_DISABLE_XET=1, as for any Hub without it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".onnx")
"""Files that the Hub keeps by LFS, whatever their size."""
FIRST = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
"""What a new repository holds."""
WRITE, READ = "write", "read"


@dataclass
class Commit:
    """One commit of a model's repository."""

    sha: str
    summary: str
    files: dict[str, bytes]


@dataclass
class Model:
    """The repository of a model."""

    private: bool
    commits: list[Commit]
    """All of them, in the order in which they came."""
    branches: dict[str, str] = field(default_factory=dict)
    """Branch → SHA."""

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch or SHA."""
        sha = self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit.sha == sha), None)


@dataclass
class Hub:
    """The data sets that it holds: (ORGANISATION/NAME, commit) → path → bytes; and models by their name."""

    url: str
    datasets: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    """Token → WRITE or READ."""
    large: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 → what was put into the LFS storage."""
    asked: list[str] = field(default_factory=list)
    """Method and path of each request, in their order."""
    cut_at: str | None = None
    """A request whose path holds this gets no answer: its connection is closed."""
    seen_meanwhile: dict[str, bytes] | None = None
    """Files that somebody else commits to a model just before the next commit comes."""

    def commit(self, model: Model, branch: str, summary: str, files: dict[str, bytes]) -> Commit:
        """Put a commit on a branch."""
        told = "".join(f"{path}\0{hashlib.sha256(data).hexdigest()}\n" for path, data in sorted(files.items()))
        sha = hashlib.sha1(f"{len(model.commits)} {branch} {summary}\n{told}".encode()).hexdigest()  # noqa: S324
        found = Commit(sha, summary, dict(files))
        model.commits.append(found)
        model.branches[branch] = sha
        return found

    def add_model(self, name: str, private: bool, files: dict[str, bytes] | None = None) -> Model:
        """A repository with one commit."""
        model = Model(private, [])
        self.commit(model, "main", "initial commit", {**FIRST, **(files or {})})
        self.models[name] = model
        return model


@contextmanager
def local_hub() -> Iterator[Hub]:
    """A hub at work until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    @property
    def hub(self) -> Hub:
        """The hub that this request is put to."""
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def _answer(self) -> None:
        body = self._body()
        path = urlsplit(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.cut_at is not None and self.hub.cut_at in path:
            self.close_connection = True
            return
        if found := re.fullmatch(
            r"(?:/api)?/datasets/([^/]+/[^/]+)/(revision|tree|paths-info|resolve)/([^/]+)/?(.*)", path
        ):
            name, what, commit, inside = map(unquote, found.groups())
            self._dataset(name, what, commit, inside, body)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            self._put(found[1], body)
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z]+)/([^/]+)/?(.*))?", path):
            name, what, revision, inside = (unquote(group or "") for group in found.groups())
            self._model(name, what or "revision", revision or "main", inside, body)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
            name, revision, inside = map(unquote, found.groups())
            self._model(name, "resolve", revision, inside, body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _dataset(self, name: str, what: str, commit: str, inside: str, body: bytes) -> None:
        if name not in {known for known, _ in self.hub.datasets}:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = self.hub.datasets.get((name, commit))
        if files is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if what == "resolve":
            return self._file(files, commit, inside)
        if what == "revision":
            card = yaml.safe_load(files.get("README.md", b"---\n{}\n---").decode().split("---")[1])
            return self._json(_told(name, commit, False, files) | {"cardData": card})
        if what == "paths-info":
            sent = json.loads(body)["paths"]
            wanted = [sent] if isinstance(sent, str) else sent
            return self._json([entry for entry in _entries(files) if entry["path"] in wanted])
        return self._json([entry for entry in _entries(files) if entry["path"].startswith(inside)])

    def _may(self, wanted: str) -> bool:
        """Whether the token of this request lets it do so; where it does not, it is answered."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        held = self.hub.tokens.get(token)
        if held is None:
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif wanted == WRITE and held != WRITE:
            self._send(403, b"{}", {"X-Error-Message": "you must use a write token to upload to a repository"})
        else:
            return True
        return False

    def _create(self, asked: dict[str, Any]) -> None:
        if not self._may(WRITE):
            return None
        name = f"{asked['organization'] or 'tester'}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.models:
            return self._json(url | {"error": "You already created this model repo"}, 409)
        self.hub.add_model(name, asked.get("visibility") == "private")
        return self._json(url)

    def _model(self, name: str, what: str, revision: str, inside: str, body: bytes) -> None:
        model = self.hub.models.get(name)
        if model is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        writes = what in ("branch", "preupload", "commit")
        if (writes or model.private) and not self._may(WRITE if writes else READ):
            return None
        if what == "branch":
            if revision in model.branches:
                return self._json({"error": "Reference already exists"}, 409)
            model.branches[revision] = model.branches["main"]
            return self._json({})
        found = model.at(revision)
        if found is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if what == "revision":
            return self._json(_told(name, found.sha, model.private, found.files))
        if what == "tree":
            return self._json(_entries(found.files))
        if what == "resolve":
            return self._file(found.files, found.sha, inside)
        if what == "preupload":
            return self._json({"files": [_how(one, found.files) for one in json.loads(body)["files"]]})
        return self._commit(name, model, revision, [json.loads(line) for line in body.splitlines()])

    def _batch(self, asked: dict[str, Any]) -> None:
        if not self._may(WRITE):
            return
        objects = []
        for one in asked["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}?signature=secret"}}
            objects.append(one | ({} if one["oid"] in self.hub.large else {"actions": actions}))
        self._json({"transfer": "basic", "objects": objects})

    def _put(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send(400, b"", {})
        self.hub.large[oid] = body
        return self._send(200, b"", {})

    def _commit(self, name: str, model: Model, branch: str, lines: list[dict[str, Any]]) -> None:
        if self.hub.seen_meanwhile is not None:
            last = model.at(branch)
            assert last is not None
            self.hub.commit(model, branch, "somebody else's", last.files | self.hub.seen_meanwhile)
            self.hub.seen_meanwhile = None
        files: dict[str, bytes] = {}
        summary = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                summary = value["summary"]
                if value.get("parentCommit") not in (None, model.branches[branch]):
                    message = "A commit has happened since. Please refresh and try again."
                    return self._json({"error": message}, 412)
                found = model.at(branch)
                assert found is not None
                files = dict(found.files)
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    return self._json({"error": "Your push was rejected: an LFS pointer pointed to no file"}, 400)
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = self.hub.commit(model, branch, summary, files)
        return self._json(
            {"success": True, "commitOid": made.sha, "commitUrl": f"{self.hub.url}/{name}/commit/{made.sha}"}
        )

    def _file(self, files: dict[str, bytes], commit: str, inside: str) -> None:
        if inside not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data, etag = files[inside], hashlib.sha256(files[inside]).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), int(part[2] or len(data) - 1)
            return self._send(206, data[first : last + 1], headers)
        return self._send(200, data, headers)

    def _json(self, found: Any, status: int = 200) -> None:
        self._send(status, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _told(name: str, sha: str, private: bool, files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "id": name,
        "sha": sha,
        "private": private,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [{"rfilename": file} for file in files],
    }


def _how(asked: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """How a file is to come, and by which name the one goes that stands there."""
    large = asked["path"].endswith(LARGE)
    found = files.get(asked["path"])
    oid = None if found is None else hashlib.sha256(found).hexdigest() if large else _git_hash(found)
    return {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324


def _entries(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """What the tree of a repository says of its files and folders."""
    folders = {parent.as_posix() for file in files for parent in PurePosixPath(file).parents if parent.name}
    return [
        *({"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)),
        *(
            {"type": "file", "path": file, "size": len(data)} | _names(file, data)
            for file, data in sorted(files.items())
        ),
    ]


def _names(file: str, data: bytes) -> dict[str, Any]:
    if not file.endswith(LARGE):
        return {"oid": _git_hash(data)}
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
    return {"oid": _git_hash(pointer), "lfs": {"oid": sha256, "size": len(data), "pointerSize": len(pointer)}}
