"""A stand-in for the Hub on the loopback interface: repositories, branches, commits, large files, and faults on order.

It speaks the part of the Hub's HTTP that pushing, loading and streaming need, and keeps everything in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".png")
BAD_YAML = "not a mapping"


@dataclass
class Commit:
    sha: str
    parent: str | None
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Branches point at commits; a commit holds all its files."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        parent = self.branches.get(branch)
        sha = hashlib.sha1(f"{parent} {message} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, message, files)
        self.branches[branch] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclass
class Fault:
    """What happens to the next `times` requests `method path`, where the path matches the pattern.

    kind: an HTTP status; "reset" (the connection is cut before anything is read), "half" (cut after half of the body of
    the request or the answer), "lost" (the request is carried out, its answer is not sent).
    """

    method: str
    pattern: str
    kind: int | str
    times: int = 1


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "METHOD path"
        self.tokens: set[str] = set()  # that requests carried
        self.lock = threading.RLock()

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def files(self, name: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        return self.repositories[kind, name].at(revision).files

    def fail(self, method: str, pattern: str, kind: int | str, times: int = 1) -> None:
        """Order a `Fault`."""
        self.faults.append(Fault(method, pattern, kind, times))

    def clear(self) -> None:
        """As new."""
        with self.lock:
            for kept in (self.repositories, self.large_files, self.faults, self.requests, self.tokens):
                kept.clear()

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, request)) for request in self.requests)


@contextmanager
def hub_server() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        return

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        self.path, self.query = unquote(parts.path), parse_qs(parts.query)
        self.server.requests.append(f"{self.command} {self.path}")
        if token := self.headers.get("Authorization"):
            self.server.tokens.add(token.removeprefix("Bearer "))
        self.cut = self.lost = False
        fault = self.server.next_fault(self.command, self.path)
        kind = fault.kind if fault else None
        length = int(self.headers.get("Content-Length") or 0)
        if kind == "reset":
            return self.reset()
        if kind == "half" and self.command in ("PUT", "POST"):
            self.rfile.read(length // 2)
            return self.reset()
        self.body = self.rfile.read(length)
        if isinstance(kind, int):
            return self.answer(kind, b"<html>the server is busy</html>", {"Content-Type": "text/html"})
        self.cut, self.lost = kind == "half", kind == "lost"
        with self.server.lock:
            return self.route()

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def reset(self) -> None:
        """Cut the connection so that the client sees a reset, not an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        self.wfile = self.rfile = _Closed()

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        if self.lost:
            return self.reset()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.cut else body)
        if self.cut:
            self.wfile.flush()
            self.reset()
        return None

    def json(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode())

    def missing(self, what: str) -> None:
        self.answer(404, b'{"error": "not found"}', {"X-Error-Code": f"{what}NotFound"})

    def route(self) -> None:
        for method, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, self.path)
            if found and self.command in method.split("|"):
                return getattr(self, name)(**found.groupdict())
        return self.missing("Entry")

    def find(self, kind: str | None, repo: str) -> Repository | None:
        kind = "dataset" if (kind or "").startswith("dataset") else "model"
        return self.server.repositories.get((kind, repo))

    # Each method below is a route; its arguments are the groups of the route's pattern.

    def create(self) -> None:
        wanted = json.loads(self.body)
        name, kind = f"{wanted.get('organization') or 'me'}/{wanted['name']}", wanted.get("type", "model")
        prefix = "datasets/" if kind == "dataset" else ""
        answer = {"url": f"{self.server.url}/{prefix}{name}", "name": name, "id": name}
        if (kind, name) in self.server.repositories:
            return self.json(answer, 409)
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        repository = self.server.repositories[kind, name] = Repository(private)
        repository.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.json(answer)

    def branch(self, kind: str, repo: str, branch: str) -> None:
        repository = self.find(kind, repo)
        if branch in repository.branches:
            return self.json({"error": "Reference already exists"}, 409)
        repository.branches[branch] = repository.branches["main"]
        return self.json({})

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") and BAD_YAML not in content else [{"message": "bad metadata"}]
        self.json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        present, found = self.find(kind, repo).at(revision).files, []
        for file in json.loads(self.body)["files"]:
            large = file["path"].endswith(LARGE)
            entry = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if file["path"] in present:
                entry["oid"] = _sha256(present[file["path"]]) if large else _git_sha(present[file["path"]])
            found.append(entry)
        self.json({"files": found})

    def batch(self, kind: str | None, repo: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            known = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.large_files:
                actions = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
                actions["verify"] = {"href": f"{self.server.url}/lfs-verify"}
                known["actions"] = actions
            objects.append(known)
        self.json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if _sha256(self.body) != oid:
            return self.json({"error": "wrong content"}, 400)
        self.server.large_files[oid] = self.body
        return self.json({})

    def verify(self) -> None:
        wanted = json.loads(self.body)
        known = len(self.server.large_files.get(wanted["oid"], b"")) == wanted["size"]
        self.json({}, 200 if known else 404)

    def commit(self, kind: str, repo: str, revision: str) -> None:
        repository = self.find(kind, repo)
        head, (header, *lines) = repository.at(revision), [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit") not in (None, head.sha):
            return self.json({"error": "The branch has moved"}, 412)
        files = dict(head.files)
        for line in lines:
            path = line["value"]["path"]
            if line["key"] == "file":
                files[path] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[path] = self.server.large_files[line["value"]["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[path]
        branch, answer = revision, {}
        if self.query.get("create_pr"):
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            branch = f"refs/pr/{number}"
            repository.branches[branch] = head.sha
            answer["pullRequestUrl"] = f"{self.server.url}/{repo}/discussions/{number}"
        sha = repository.commit(branch, header["value"]["summary"], files).sha
        return self.json({"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha, **answer})

    def info(self, kind: str, repo: str, revision: str = "main") -> None:
        repository = self.find(kind, repo)
        if repository is None:
            return self.missing("Repo")
        commit = repository.at(revision)
        if commit is None:
            return self.missing("Revision")
        files = [{"rfilename": path} for path in commit.files]
        found = {"_id": "0" * 24, "id": repo, "private": repository.private, "sha": commit.sha, "siblings": files}
        return self.json({**found, "tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False})

    def tree(self, kind: str, repo: str, revision: str, folder: str = "") -> None:
        commit, start = self.find(kind, repo).at(revision), f"{folder}/" if folder else ""
        inside = {path: content for path, content in commit.files.items() if path.startswith(start)}
        if folder and not inside:
            return self.missing("Entry")
        entries = [_entry(path, content) for path, content in inside.items()]
        folders = {path.rsplit("/", 1)[0] for path in inside if "/" in path[len(start) :]}
        if not self.query.get("recursive", ["false"])[0].lower().startswith("t"):
            entries = [entry for entry in entries if "/" not in entry["path"][len(start) :]]
            folders = {start + path[len(start) :].split("/")[0] for path in folders}
        entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        return self.json(entries)

    def paths(self, kind: str, repo: str, revision: str) -> None:
        files = self.find(kind, repo).at(revision).files
        form = parse_qs(self.body.decode()) if self.body[:1] != b"{" else json.loads(self.body)
        entries = [_entry(path, files[path]) for path in form["paths"] if path in files]
        for path in form["paths"]:
            if path not in files and any(name.startswith(f"{path}/") for name in files):
                entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self.json(entries)

    def resolve(self, kind: str | None, repo: str, revision: str, path: str) -> None:
        repository = self.find(kind, repo)
        if repository is None:
            return self.missing("Repo")
        commit = repository.at(revision)
        if commit is None:
            return self.missing("Revision")
        if path not in commit.files:
            return self.missing("Entry")
        content, status = commit.files[path], 200
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{_entry(path, content)["etag"]}"', "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        return self.answer(status, content, {**headers, "Content-Type": "application/octet-stream"})


class _Closed:
    """In the place of a connection's streams once it is cut."""

    closed = True

    def flush(self) -> None: ...
    def close(self) -> None: ...


_KIND, _REPO = r"(?P<kind>models|datasets)", r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = (
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate"),
    ("POST", f"/api/{_KIND}/{_REPO}/branch/(?P<branch>.+)", "branch"),
    ("POST", f"/api/{_KIND}/{_REPO}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", f"/(?:(?P<kind>datasets)/)?{_REPO}\\.git/info/lfs/objects/batch", "batch"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]+)", "upload"),
    ("POST", "/lfs-verify", "verify"),
    ("POST", f"/api/{_KIND}/{_REPO}/commit/(?P<revision>.+)", "commit"),
    ("GET", f"/api/{_KIND}/{_REPO}", "info"),
    ("GET", f"/api/{_KIND}/{_REPO}/revision/(?P<revision>.+)", "info"),
    ("GET", f"/api/{_KIND}/{_REPO}/tree/(?P<revision>refs/pr/\\d+|[^/]+)(?:/(?P<folder>.+))?", "tree"),
    ("POST", f"/api/{_KIND}/{_REPO}/paths-info/(?P<revision>.+)", "paths"),
    ("HEAD|GET", f"/(?:(?P<kind>datasets)/)?{_REPO}/resolve/(?P<revision>refs/pr/\\d+|[^/]+)/(?P<path>.+)", "resolve"),
)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git_sha(content), "etag": _git_sha(content)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 130}
        entry["etag"] = _sha256(content)
    return entry


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
