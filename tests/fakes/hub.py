"""FakeHub: a local HTTP server that answers as the Hugging Face hub does, and can cut connections."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class FakeRepository:
    """A repository's files, and how it answers."""

    files: dict[str, bytes]
    large: frozenset[str] = frozenset()
    gated: bool = False
    token: str | None = None
    commit: str = COMMIT
    branches: tuple[str, ...] = ("main",)
    damaged: frozenset[str] = frozenset()


@dataclass
class FakeHub:
    """The server; use as a context manager.

    Attributes:
        cut_after: bytes of a large file after which a connection is dropped, for as many times as `cuts`.
        sent: for each GET of a file: its name, the Range asked for, the bytes sent.
    """

    repositories: dict[str, FakeRepository] = field(default_factory=dict)
    cut_after: int = 0
    cuts: int = 0
    ignore_range: bool = False
    sent: list[tuple[str, str | None, int]] = field(default_factory=list)
    tokens_seen: list[str | None] = field(default_factory=list)

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            fake = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about, so it is no news."""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.fake.tokens_seen.append(self.headers.get("Authorization"))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3], with_body)
        else:
            self._error(404, "EntryNotFound")

    def _repository(self, name: str, revision: str) -> FakeRepository | None:
        repository = self.fake.repositories.get(name)
        if repository is None:
            self._error(401, "RepoNotFound")
            return None
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            self._error(401, "RepoNotFound")
            return None
        if revision not in (*repository.branches, repository.commit):
            self._error(404, "RevisionNotFound")
            return None
        return repository

    def _info(self, name: str, revision: str) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        siblings = []
        for file, content in repository.files.items():
            sibling: dict[str, object] = {"rfilename": file, "size": len(content), "blobId": _git_digest(content)}
            if file in repository.large:
                sibling["lfs"] = {"size": len(content), "sha256": _sha256(content), "pointerSize": 134}
            siblings.append(sibling)
        self._send(json.dumps({"id": name, "sha": repository.commit, "siblings": siblings}).encode(), {})

    def _file(self, name: str, revision: str, file: str, with_body: bool) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        if repository.gated:
            self._error(403, "GatedRepo")
            return
        content = repository.files.get(file)
        if content is None:
            self._error(404, "EntryNotFound")
            return
        large = file in repository.large
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{_git_digest(content)}"', "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
        if file in repository.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        asked = self.headers.get("Range")
        begin, end = 0, len(content)
        if asked and not self.fake.ignore_range:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(end, int(last) + 1) if last else end
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        body, status = content[begin:end], 206 if "Content-Range" in headers else 200
        limit = len(body)
        if with_body and large and self.fake.cuts > 0:
            self.fake.cuts -= 1
            limit = min(limit, self.fake.cut_after)
        if with_body:
            self.fake.sent.append((file, asked, limit))
        self._send(body, headers, status, limit, with_body)

    def _send(
        self, body: bytes, headers: dict[str, str], status: int = 200, limit: int | None = None, with_body: bool = True
    ) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body[:limit])
            if limit is not None and limit < len(body):
                self.close_connection = True

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
