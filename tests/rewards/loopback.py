"""A server on loopback that misbehaves on request."""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Handler", Any], None]  # answers one request, given its parsed body


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise the body waits 40 ms for the headers' acknowledgement

    def setup(self) -> None:
        super().setup()
        self.loopback.connections.append(self.connection)

    @property
    def loopback(self) -> "Loopback":
        return self.server.loopback  # pyright: ignore[reportAttributeAccessIssue]

    def do_POST(self):
        server = self.loopback
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
        try:
            reply(self, body)
        except OSError:
            self.close_connection = True  # the client hung up

    def send(self, body: bytes | Any, status: int = 200, *, length: int | None = None, **headers: str) -> None:
        """A complete reply, or a truncated one if `length` is greater than the body's."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        if length is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None: ...


@dataclass
class Loopback:
    """Answers with `replies` in turn, repeating the last one, and records the requests."""

    replies: list[Reply]
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)  # path, headers, body
    connections: list[socket.socket] = field(default_factory=list)
    port: int = 0  # any free one
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self._server.loopback = self  # pyright: ignore[reportAttributeAccessIssue]
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:  # kept open for further requests
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


# --- failures --------------------------------------------------------------------------------------------------------


def status(code: int, body: bytes | Any = b"", **headers: Any) -> Reply:
    return lambda handler, _: handler.send(body, code, **headers)


def slow(handler: Handler, _: Any) -> None:
    time.sleep(0.5)
    handler.send({})


def trickling(handler: Handler, _: Any) -> None:
    """One byte at a time, so that no single wait is long."""
    handler.send(b"{", length=100)
    for _ in range(20):
        time.sleep(0.05)
        handler.wfile.write(b" ")


def cut(handler: Handler, _: Any) -> None:
    """The connection ends in the middle of the body."""
    handler.send(b'{"scores": [0.', length=1000)


def endless(handler: Handler, _: Any) -> None:
    handler.send(b"[", length=10**9)
    while True:
        handler.wfile.write(b" " * 2**16)


class Counting:
    """Answers with another reply after a moment, and counts how many requests were in progress at most."""

    def __init__(self, reply: Reply, seconds: float = 0.01):
        self.reply, self.seconds = reply, seconds
        self.now, self.most, self._lock = 0, 0, threading.Lock()

    def __call__(self, handler: Handler, body: Any) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self._lock:
            self.now -= 1  # before the reply: the client may start the next request at its last byte
        self.reply(handler, body)
