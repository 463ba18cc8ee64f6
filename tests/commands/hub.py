"""A Hugging Face Hub of one user on loopback: the endpoints that an upload of a folder needs, and what it received."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OWNER, TOKEN = "ann", "hf_secret"


@dataclass
class Repository:
    private: bool
    files: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})  # by branch and path
    messages: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """Knows one token, which may write to the repositories of one owner."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256
    requests: list[str] = field(default_factory=list)
    fails: str | None = None  # beginning of the path of requests that are answered with 500
    url: str = ""

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, Any]:
        """Status and content of a reply."""
        self.requests.append(f"{method} {path}")
        if self.fails is not None and path.startswith(self.fails):
            return 500, {"error": "the disk is full"}
        if path.startswith("/objects/"):  # the address itself is the permission, as on the Hub
            self.objects[path.rpartition("/")[2]] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        return self._answer(method, path, body)

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        for pattern, reply in self._routes().items():
            if found := re.fullmatch(pattern, path):
                name, *rest = found.groups()
                if name not in self.repositories:
                    return 404, {"error": "Repository not found", "code": "RepoNotFound"}
                return reply(name, *rest, body)
        raise AssertionError(f"{method} {path} is not part of this hub")

    def _routes(self) -> dict[str, Callable[..., tuple[int, Any]]]:
        name = r"([\w.-]+/[\w.-]+)"
        return {
            f"/api/models/{name}": self._info,
            f"/api/models/{name}/branch/(.+)": self._branch,
            f"/api/models/{name}/preupload/(.+)": self._modes,
            f"/{name}.git/info/lfs/objects/batch": self._large,
            f"/api/models/{name}/commit/(.+)": self._commit,
        }

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        owner = asked.get("organization") or OWNER
        if owner != OWNER:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        name = f"{owner}/{asked['name']}"
        self.repositories[name] = Repository(asked.get("visibility") == "private", {"main": {".gitattributes": b""}})
        return 200, {"url": f"{self.url}/{name}"}

    def _info(self, name: str, _: bytes) -> tuple[int, Any]:
        found = self.repositories[name]
        files = [{"rfilename": path} for path in found.files["main"]]
        return 200, {"id": name, "private": found.private, "tags": found.tags, "siblings": files}

    def _branch(self, name: str, branch: str, _: bytes) -> tuple[int, Any]:
        files = self.repositories[name].files
        files.setdefault(branch, dict(files["main"]))
        return 200, {}

    def _modes(self, name: str, branch: str, body: bytes) -> tuple[int, Any]:
        assert branch in self.repositories[name].files
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith((".safetensors", ".png")) else "regular" for path in paths}
        return 200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}

    def _large(self, _: str, body: bytes) -> tuple[int, Any]:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/objects/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def _commit(self, name: str, branch: str, body: bytes) -> tuple[int, Any]:
        repository = self.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                repository.files[branch][value["path"]] = base64.b64decode(value["content"])
            else:
                content = self.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                repository.files[branch][value["path"]] = content
        return 200, {
            "success": True,
            "commitUrl": f"{self.url}/{name}/commit/1",
            "commitOid": "1" * 40,
            "hookOutput": "",
        }


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self._body()
            status, content = hub.answer(
                self.command, self.path.partition("?")[0], self.headers["Authorization"], body
            )
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            if status >= 400:
                self.send_header("X-Error-Message", content["error"])
                self.send_header("X-Error-Code", content.get("code", ""))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self):
            self.answer()

        def do_POST(self):
            self.answer()

        def do_PUT(self):
            self.answer()

        def _body(self) -> bytes:
            if self.headers["Transfer-Encoding"] != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"] or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
