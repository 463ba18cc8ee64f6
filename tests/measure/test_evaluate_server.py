"""`evaluate` with a metric behind a server that is down at first: nothing counts as measured that it did not score."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from customized_grpo.measure.evaluate import write_evaluation
from customized_grpo.measure.request import make_request
from customized_grpo.rewards.scoring import RewardError
from program import TINY


class Server(ThreadingHTTPServer):
    answers, asked = 0, 0  # how many of its requests it answers, and how many came


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        answered = self.server.asked <= self.server.answers
        reply = json.dumps({"scores": [0.5] * len(body["samples"])} if answered else {"error": "loading"}).encode()
        self.send_response(200 if answered else 400)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served
        served.shutdown()


@pytest.mark.filterwarnings("ignore:.*could not score")
def test_what_the_server_did_not_score_is_asked_again(server: Server, write_list: Callable[..., Path], tmp_path: Path):
    metric = f"http url=http://127.0.0.1:{server.server_port}/score retries=0 batch=1 in_flight=1"
    settings = [f"data.source={write_list()}", "data.held_out_share=0.5", "evaluation.metrics=[]", "max_unscored=0.4"]
    request = make_request(TINY, settings, metrics=[metric])
    cases, output = len(request.samples), tmp_path / "out"
    server.answers = 1
    with pytest.raises(RewardError, match=rf"scored 1 of {cases} images, and max_unscored is 0.4; the same command"):
        write_evaluation(request, output, None)
    assert not (output / "summary.json").exists()
    before = {path.name: path.read_bytes() for path in (output / "images").iterdir()}

    server.answers, server.asked = 1_000, 0
    write_evaluation(request, output, None)
    assert server.asked == cases - 1
    summary = json.loads((output / "summary.json").read_text())
    assert [figure["unscored"] for name, figure in summary["metrics"].items() if name.startswith("http ")] == [0]
    assert {path.name: path.read_bytes() for path in (output / "images").iterdir()} == before
