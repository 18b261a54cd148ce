"""A Hugging Face Hub on loopback: the few routes of its HTTP API by which a pinned data set is found and fetched.

Only the other side is a stand-in; what asks is the real `huggingface_hub` and `datasets`.
"""

from __future__ import annotations

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


@dataclass
class Hub:
    """The data sets that it holds: (ORGANISATION/NAME, commit) → path → bytes."""

    url: str
    datasets: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)


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

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        asked = re.fullmatch(r"(?:/api)?/datasets/([^/]+/[^/]+)/(revision|tree|paths-info|resolve)/([^/]+)/?(.*)", path)
        if asked is None:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        name, what, commit, inside = asked.groups()
        if name not in {known for known, _ in hub.datasets}:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = hub.datasets.get((name, commit))
        if files is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if what == "resolve":
            if inside not in files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            etag = hashlib.sha256(files[inside]).hexdigest()
            return self._send(200, files[inside], {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
        if what == "revision":
            card = yaml.safe_load(files.get("README.md", b"---\n{}\n---").decode().split("---")[1])
            found: Any = {
                "id": name,
                "sha": commit,
                "private": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "cardData": card,
                "siblings": [{"rfilename": file} for file in files],
            }
        elif what == "paths-info":
            sent = json.loads(body)["paths"]
            wanted = [sent] if isinstance(sent, str) else sent
            found = [entry for entry in _entries(files) if entry["path"] in wanted]
        else:
            found = [entry for entry in _entries(files) if entry["path"].startswith(inside)]
        return self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entries(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """What the tree of a repository says of its files and folders."""
    folders = {parent.as_posix() for file in files for parent in PurePosixPath(file).parents if parent.name}
    return [
        *({"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)),
        *(
            {"type": "file", "path": file, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}  # noqa: S324
            for file, data in sorted(files.items())
        ),
    ]
