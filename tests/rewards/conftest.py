"""Servers on loopback for the rewards that ask one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback import Loopback, Reply

from customized_grpo.rewards import remote


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Loopback]]:
    """Starts servers; pauses between tries are short, and no proxy of the environment comes between."""
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.15)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    # No certificates: nobody here uses any, and reading those of the system takes most of a client's making.
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    started: list[Loopback] = []

    def start(*replies: Reply) -> Loopback:
        server = Loopback(list(replies))
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()
