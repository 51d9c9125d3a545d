"""A Hugging Face hub on this machine, in memory: accounts, repositories, uploads, downloads, nothing else of it.

with FakeHub() as hub:
    hub.address                                    for HF_ENDPOINT
    hub.files["alice/policy"]["README.md"]         the bytes that were committed
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlparse

TOKEN = "hf_alices"
COMMIT = "0" * 40


@dataclass
class FakeHub:
    """The hub of one account, alice, who is a member of the organisation lab.

    Args:
        role: what the account's token may do, `read` or `write`.
        refuses: by a part of a path, the status with which requests to it are answered.
        files: content by repository and path.
        private: repositories that were created as private ones.
        requests: method and path of each request.
        large: files of these suffixes are sent apart from the commit, as large ones are.
    """

    role: str = "write"
    refuses: dict[str, int] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    requests: list[tuple[str, str]] = field(default_factory=list)
    large: tuple[str, ...] = (".safetensors",)

    def __enter__(self) -> Self:
        self._blobs: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Status, content and headers."""
        self.requests.append((method, path))
        for part, status in self.refuses.items():
            if part in path:
                return status, {"error": f"refused with {status}"}, {}
        routes: list[tuple[str, str, Callable[..., tuple[int, Any, dict[str, str]]]]] = [
            ("HEAD", r"/", lambda: (200, b"", {})),
            ("POST", r"/api/validate-yaml", lambda: (200, {"errors": [], "warnings": []}, {})),
            ("POST", r"/api/repos/create", lambda: self._create(json.loads(body))),
            ("GET", r"/api/models/([^/]+/[^/]+)/tree/main.*", self._tree),
            ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/main)?", self._info),
            ("POST", r"/api/models/([^/]+/[^/]+)/preupload/main", lambda name: self._modes(name, json.loads(body))),
            ("POST", r"/api/models/([^/]+/[^/]+)/commit/main", lambda name: self._commit(name, body)),
            ("POST", r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", lambda: self._batch(json.loads(body))),
            ("PUT", r"/blobs/(\w+)", lambda oid: self._blob(oid, body)),
            ("HEAD", r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self._file),
            ("GET", r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self._file),
        ]
        if path == "/api/whoami-v2":
            account = {"name": "alice", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": self.role}}}
            return (200, account, {}) if token == TOKEN else (401, {"error": "Invalid credentials"}, {})
        for wanted, pattern, respond in routes:
            if method == wanted and (found := re.fullmatch(pattern, path)):
                if method in ("POST", "PUT") and not pattern.startswith("/blobs") and token != TOKEN:
                    return 401, {"error": "Invalid credentials"}, {}
                return respond(*found.groups())
        return 404, {"error": f"nothing at {path}"}, {}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        name = f"{asked.get('organization') or 'alice'}/{asked['name']}"
        if name in self.files:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}, {}
        self.files[name] = {".gitattributes": b""}
        if asked.get("visibility") == "private" or asked.get("private"):
            self.private.add(name)
        return 200, {"url": f"{self.address}/{name}", "name": name}, {}

    def _tree(self, name: str) -> tuple[int, Any, dict[str, str]]:
        if name not in self.files:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        return 200, [_entry(path, content) for path, content in self.files[name].items()], {}

    def _info(self, name: str) -> tuple[int, Any, dict[str, str]]:
        if name not in self.files:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        siblings = [{"rfilename": path} for path in self.files[name]]
        return 200, {"id": name, "sha": COMMIT, "siblings": siblings, "private": name in self.private}, {}

    def _modes(self, name: str, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        there = self.files[name]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(self.large) else "regular",
                "shouldIgnore": False,
                "oid": _oid(there[file["path"]], self.large, file["path"]) if file["path"] in there else None,
            }
            for file in asked["files"]
        ]
        return 200, {"files": modes}, {}

    def _batch(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.address}/blobs/{one['oid']}"}}} for one in asked["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _blob(self, oid: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        assert hashlib.sha256(body).hexdigest() == oid
        self._blobs[oid] = body
        return 200, b"", {}

    def _commit(self, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        for line in filter(None, body.split(b"\n")):
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                self.files[name][value["path"]] = self._blobs[value["oid"]]
            elif key == "deletedFile":
                del self.files[name][value["path"]]
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}, {}

    def _file(self, name: str, path: str) -> tuple[int, Any, dict[str, str]]:
        content = self.files.get(name, {}).get(path)
        if content is None:
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
        return 200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}


def _oid(content: bytes, large: tuple[str, ...], path: str) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(large) else _git_oid(content)


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, content, headers = hub.answer(self.command, urlparse(self.path).path, token, body)
            payload = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.send_header("Content-Type", "application/json")
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(payload)

        do_GET = do_HEAD = do_POST = do_PUT = _respond

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing on the terminal."""

    return Handler
