"""A stand-in for the Hugging Face hub on 127.0.0.1: as much of its HTTP as listing and downloading files uses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

STORED_APART = (".safetensors", ".bin", ".h5", ".onnx")  # the hub redirects to another host for these


class Request(NamedTuple):
    """What a client asked for: `path` is a file's name in its repository, `host` the one it was asked of."""

    method: str
    host: str
    path: str
    token: str | None
    range: str | None


class HubStandIn(ThreadingHTTPServer):
    """Serves `repositories[repo_id][revision][path]` and notes every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.tokens: dict[str, str] = {}  # of a gated repository, the token that opens it
        self.cut: dict[str, int] = {}  # of a path, where its first transfer breaks off
        self.cut_always: dict[str, int] = {}  # of a path, how much of it one transfer brings
        self.stall: dict[str, int] = {}  # of a path, where its first transfer stops without an end
        self.stalled = threading.Event()
        self.failing = False  # every answer is 503
        self.requests: list[Request] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, method: str) -> list[str]:
        """Paths of the requests for files, in order."""
        return [request.path for request in self.requests if request.method == method and request.path]


def commit_of(repo_id: str, revision: str) -> str:
    """The commit that a branch of the stand-in is at."""
    return hashlib.sha1(f"{repo_id} {revision}".encode(), usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def serve() -> Iterator[HubStandIn]:
    """A hub that runs until the end of the block."""
    with HubStandIn() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self) -> None:
        repo_id, revision, path = self.target()
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        host = self.headers["Host"].split(":")[0]
        self.server.requests.append(Request(self.command, host, path, token, self.headers["Range"]))
        refusal = self.refusal(repo_id, revision, path, token, host)
        if refusal:
            status, error = refusal
            self.reply(status, {"X-Error-Code": error, "X-Error-Message": error})
            return
        commit, files = self.revision(repo_id, revision)
        if not path:
            self.reply(HTTPStatus.OK, {}, json.dumps(listing(repo_id, commit, files)).encode())
        elif path not in files:
            self.reply(HTTPStatus.NOT_FOUND, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif path.endswith(STORED_APART) and host != "localhost":
            self.redirect(commit, files[path])
        else:
            self.send_file(path, commit, files[path])

    def target(self) -> tuple[str, str, str]:
        """Repository, revision and path; no path for the list of files."""
        if self.path.startswith("/api/models/"):
            repo_id, _, revision = self.path.removeprefix("/api/models/").partition("/revision/")
            return repo_id, revision or "main", ""
        repo_id, _, rest = self.path.removeprefix("/").partition("/resolve/")
        revision, _, path = rest.partition("/")
        return repo_id, revision, path

    def refusal(self, repo_id: str, revision: str, path: str, token: str | None, host: str) -> tuple[int, str] | None:
        if self.server.failing:
            return HTTPStatus.SERVICE_UNAVAILABLE, ""
        if token == "expired":
            return HTTPStatus.UNAUTHORIZED, "Invalid credentials in Authorization header"
        if repo_id not in self.server.repositories:
            return (HTTPStatus.NOT_FOUND if token else HTTPStatus.UNAUTHORIZED), "RepoNotFound"
        if path and host != "localhost" and self.server.tokens.get(repo_id, token) != token:
            return HTTPStatus.FORBIDDEN, "GatedRepo"
        if self.revision(repo_id, revision) == ("", {}):
            return HTTPStatus.NOT_FOUND, "RevisionNotFound"
        return None

    def revision(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]]:
        for name, files in self.server.repositories[repo_id].items():
            commit = commit_of(repo_id, name)
            if revision in (name, commit):
                return commit, files
        return "", {}

    def redirect(self, commit: str, content: bytes) -> None:
        location = f"http://localhost:{self.server.server_port}{self.path}"
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": etag(content)}
        self.reply(HTTPStatus.FOUND, {"Location": location, "X-Repo-Commit": commit, **linked})

    def send_file(self, path: str, commit: str, content: bytes) -> None:
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"ETag": etag(content), "X-Repo-Commit": commit}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers["Content-Length"] = str(len(content) - start)
        self.reply(HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK, headers)
        if self.command == "HEAD":
            return
        end = self.server.cut.pop(path, None) or self.server.stall.get(path) or len(content)
        end = min(end, start + self.server.cut_always.get(path, end))
        self.wfile.write(content[start:end])
        if end < len(content):
            self.close_connection = True
        if self.server.stall.pop(path, None):
            self.server.stalled.set()
            self.rfile.read(1)  # until the client goes away

    def reply(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def listing(repo_id: str, commit: str, files: dict[str, bytes]) -> dict[str, object]:
    """What `/api/models/{repo_id}` says."""
    return {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": [{"rfilename": name} for name in files]}


def etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()}"'
