"""What both remote rewards do when servers fail, how they keep keys secret, and their settings."""

import logging
import random
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from loopback import Counting, Handler, Loopback, Reply, cut, endless, slow, status, trickling
from pydantic import TypeAdapter, ValidationError
from remote_rewards import CPU, GREY, REMOTES, SAMPLES, SCORES, Remote, assert_retried, completion

from customized_grpo.config import ConfigError, load_config
from customized_grpo.data import Sample
from customized_grpo.data.images import PictureError
from customized_grpo.errors import UsageError
from customized_grpo.rewards import remote as remote_module
from customized_grpo.rewards.mistakes import parse_metric
from customized_grpo.rewards.remote import AskError, retry_after
from customized_grpo.rewards.scoring import Scorer
from customized_grpo.rewards.secrets import Url
from customized_grpo.runtime.distributed import Processes

Serve = Callable[..., Loopback]
KEY = "sk-very-secret-0123"
NOWHERE = "http://localhost:1"


@pytest.fixture(params=REMOTES)
def remote(request: pytest.FixtureRequest) -> Remote:
    return REMOTES[request.param]


def test_each_image_gets_its_own_score(remote: Remote, serve: Serve):
    server = serve(remote.by_grey)
    reward = remote.make(server, in_flight=3)
    assert reward(GREY, SAMPLES).tolist() == SCORES
    assert len(server.requests) == 5
    assert reward.last_error is None
    assert reward.unscored == {}


# --- failures --------------------------------------------------------------------------------------------------------

FAILURES = {
    "slow": (slow, "no complete answer within 0.2 s", "no_answer"),
    "trickling": (trickling, "no complete answer within 0.2 s", "no_answer"),
    "busy": (status(429, b"too many", Retry_After="0"), "429 Too Many Requests: too many", "no_answer"),
    "overloaded": (status(503, b"loading\nthe model"), "503 Service Unavailable: loading the model", "no_answer"),
    "broken": (status(500, b"Traceback"), "500 Internal Server Error: Traceback", "refused"),
    "cut": (cut, "no answer: peer closed connection", "no_answer"),
    "endless": (endless, "no answer: a reply of more than", "no_answer"),
    "half JSON": (status(200, b'{"scores": [0.'), "the reply is not", "bad_reply"),
    "deep JSON": (status(200, b"[" * 100_000), "the reply is not", "bad_reply"),
    "not text": (status(200, b"\xff\xfe\x00"), "the reply is not", "bad_reply"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_request_is_tried_again(remote: Remote, serve: Serve, name: str):
    reply, message, cause = FAILURES[name]
    assert_retried(remote, serve(reply, reply, reply, remote.by_grey), message, cause, timeout=0.2)


@pytest.mark.parametrize("code", [302, 400, 401, 404, 413])
def test_a_refused_request_is_not_tried_again(remote: Remote, serve: Serve, code: int):
    server = serve(status(code, b"no", Location="http://127.0.0.1:9/"))
    reward = remote.make(server)
    assert reward(GREY[:1], SAMPLES[:1]).isnan().all()
    assert len(server.requests) == 1
    assert f"{remote.path}: {code} " in reward.last_error
    assert reward.unscored == {"refused": 1}


def test_other_requests_keep_their_scores(remote: Remote, serve: Serve):
    def fails_for_one(handler: Handler, body: Any) -> None:
        reply = status(500) if remote.score(body) == 0.5 else remote.by_grey
        reply(handler, body)

    scores = remote.make(serve(fails_for_one), in_flight=1)(GREY, SAMPLES)
    assert scores.isnan().tolist() == [False, False, True, False, False]
    assert scores[[0, 1, 3, 4]].tolist() == [0, 0.25, 0.75, 1]


@pytest.mark.parametrize("header", ["0.1", "0", "1", "-3", "soon", "", "86400"])
def test_the_pause_that_a_server_asks_for_is_kept_within_limits(
    remote: Remote, serve: Serve, header: str, monkeypatch: pytest.MonkeyPatch
):
    pauses: list[float] = []
    reward = remote.make(serve(status(429, Retry_After=header), remote.by_grey))
    monkeypatch.setattr(reward._closed, "wait", pauses.append)
    assert reward(GREY[:1], SAMPLES[:1]).isfinite().all()
    if header in ("1", "86400"):
        assert pauses == [remote_module.LONGEST_PAUSE]
    else:
        assert 0 < pauses[0] <= remote_module.FIRST_PAUSE


def test_pauses_grow_and_do_not_disturb_the_random_numbers_of_training(
    remote: Remote, serve: Serve, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remote_module, "LONGEST_PAUSE", 30.0)
    pauses: list[float] = []
    server = serve(status(503))
    reward = remote.make(server, retries=4)
    monkeypatch.setattr(reward._closed, "wait", pauses.append)
    random.seed(0)
    before = random.getstate()
    reward(GREY[:1], SAMPLES[:1])
    assert random.getstate() == before
    assert len(server.requests) == 5
    for failures, pause in enumerate(pauses):
        assert 0.5 <= pause / (remote_module.FIRST_PAUSE * 2**failures) <= 1
    monkeypatch.setattr(remote_module, "FIRST_PAUSE", 0.5)
    assert reward._pause(AskError("no_answer", "no answer"), 100_000) == 30


def test_an_unreadable_reference_is_an_error_not_a_missing_score(remote: Remote, serve: Serve, tmp_path: Path):
    broken = Sample("s", "dog", "a dog", (tmp_path / "missing.png",))
    with pytest.raises(PictureError, match=r"missing\.png"):
        remote.make(serve(remote.by_grey))(GREY[:1], [broken])


def test_retry_after_holds_seconds_or_a_date():
    later = datetime.now(UTC) + timedelta(seconds=20)
    assert retry_after("3") == 3
    assert retry_after(format_datetime(later, usegmt=True)) == pytest.approx(20, abs=2)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [retry_after(text) for text in ("", "soon", "-3", "²", "Wed, 99 Foo")] == [0] * 5


# --- a server that is down -------------------------------------------------------------------------------------------


def test_a_server_may_be_down_at_first_go_down_later_and_come_back(remote: Remote, serve: Serve):
    server = serve(remote.by_grey)
    server.stop()
    reward = remote.make(server)
    assert reward(GREY, SAMPLES).isnan().all()
    assert "Connection refused" in reward.last_error
    assert reward.unscored == {"no_answer": 5}
    server.start()
    assert reward(GREY, SAMPLES).tolist() == SCORES
    server.stop()
    assert reward(GREY, SAMPLES).isnan().all()
    server.start()
    assert reward(GREY, SAMPLES).tolist() == SCORES
    assert reward.unscored == {"no_answer": 10}


def test_a_hanging_server_costs_a_batch_the_time_of_one_request(remote: Remote, serve: Serve):
    """50 requests of two tries, two at a time, would wait 10 s one after another."""
    server = serve(slow)
    reward = remote.make(server, in_flight=2, timeout=0.2)
    started = time.monotonic()
    assert reward(GREY[:1].expand(50, 3, 8, 8), SAMPLES[:1] * 50).isnan().all()
    assert time.monotonic() - started < 3
    assert len(server.requests) <= 4
    assert reward.unscored == {"no_answer": 50}
    assert "no complete answer within" in reward.last_error


def test_a_busy_server_that_answers_other_requests_is_not_given_up(remote: Remote, serve: Serve):
    """One request is refused for good while others are answered and still others wait: only its image is lost."""
    second_answered, first_refused = threading.Event(), threading.Event()

    def busy_for_the_first(handler: Handler, body: Any) -> None:
        score = remote.score(body)
        if score == 0:
            second_answered.wait(5)
            status(429)(handler, body)
            first_refused.set()
        else:
            if score == 0.5:  # the third is asked only after the second was answered
                second_answered.set()
                first_refused.wait(5)
                time.sleep(0.1)  # until the client has seen the refusal; the last two are asked after that
            remote.by_grey(handler, body)

    scores = remote.make(serve(busy_for_the_first), in_flight=2, retries=0)(GREY, SAMPLES)
    assert scores.isnan().tolist() == [True, False, False, False, False]


def test_closing_ends_all_waiting(remote: Remote, serve: Serve):
    reward = remote.make(serve(slow), in_flight=1, retries=9, timeout=0.2)
    threading.Timer(0.1, reward.close).start()
    started = time.monotonic()
    assert reward(GREY, SAMPLES).isnan().all()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("in_flight", [1, 3])
def test_no_more_requests_are_in_flight_than_allowed(remote: Remote, serve: Serve, in_flight: int):
    """Also when they come from several threads."""
    counting = Counting(remote.by_grey)
    scorer = Scorer({"detail": remote.make(serve(counting), in_flight=in_flight)})
    for _ in range(3):
        scorer.begin(GREY, SAMPLES)
    assert scorer.finish(GREY.repeat(3, 1, 1, 1), SAMPLES * 3)["detail"].tolist() == SCORES * 3
    assert counting.most == in_flight


def test_images_of_a_repeated_update_are_counted_once(remote: Remote, serve: Serve):
    """As after an out-of-memory error in the rollout, and after one in the update; the first update is complete."""
    arrived = threading.Event()

    def refuse(handler: Handler, body: Any) -> None:
        arrived.set()
        time.sleep(0.05)  # still being asked when the update is given up
        status(400)(handler, body)

    scorer = Scorer({"detail": remote.make(serve(refuse), in_flight=2, retries=0)})
    for attempt in ("finished", "begun", "scored", "not begun", "finished"):
        scorer.start()
        if attempt != "not begun":
            arrived.clear()
            scorer.begin(GREY, SAMPLES)
            assert arrived.wait(5)
        if attempt in ("finished", "scored"):
            assert scorer.finish(GREY, SAMPLES)["detail"].isnan().all()
        if attempt != "finished":
            scorer.discard()
    (lost,) = scorer.unscored_by_remote(Processes("cpu"))["lost"].values()
    assert sum(lost.values()) == 10


# --- keys and the environment ----------------------------------------------------------------------------------------

# Characters and spaces before the key, so that a long line would be cut within it.
REPEATED = [status(401, f"{'x' * n}{' ' * m} Bearer {KEY} is wrong".encode()) for n, m in
            [(0, 0), (240, 0), (250, 0), (260, 0), (0, 1985)]]  # fmt: skip
MORE_REPEATED: dict[str, list[Reply]] = {
    "http": [status(200, {"scores": [KEY]}), status(200, KEY.encode())],
    "vlm_judge": [completion(f"{KEY}?"), completion(f"{'x' * 190}{KEY}"), completion(None, refusal=KEY)],
}


def test_the_key_is_sent_and_appears_nowhere_else(
    remote: Remote, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Not even if the server repeats it at the point where a long line is cut."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    replies = [*REPEATED, *MORE_REPEATED[remote.name]]
    server = serve(*replies, remote.by_grey)
    settings = remote.settings(server, api_key_env="MY_KEY", retries=0)
    reward: Any = settings.make(CPU)
    texts = [repr(settings), str(settings), settings.model_dump_json(), repr(reward), repr(reward._http)]
    texts.append(repr(reward._http.headers))
    for _ in replies:
        assert reward(GREY[:1], SAMPLES[:1]).isnan().all()
        texts.append(reward.last_error)
    assert sum("***" in text for text in texts) >= 3
    assert reward(GREY[:1], SAMPLES[:1]).isfinite().all()
    assert {headers["authorization"] for _, headers, _ in server.requests} == {f"Bearer {KEY}"}
    assert "HTTP Request" in caplog.text
    assert not any("sk-ve" in text for text in [*texts, caplog.text])


@pytest.mark.parametrize("value", [None, " "])
def test_a_key_that_is_not_set_is_reported_at_once(remote: Remote, value: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    message = f"reward '{remote.name}': api_key_env names MY_KEY, but that variable is not set"
    with pytest.raises(UsageError, match=f"^{message}$"):
        remote.make(NOWHERE, api_key_env="MY_KEY")


@pytest.mark.parametrize("key", [f"{KEY}\nX-Other: 1", f"{KEY} {KEY}", f"{KEY}é", f'"{KEY}"', f"{KEY}\\"])
def test_an_impossible_key_is_refused_without_showing_it(remote: Remote, key: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(UsageError, match="the value of MY_KEY is not a key") as error:
        remote.make(NOWHERE, api_key_env="MY_KEY")
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("HTTP_PROXY", "ftp://proxy", "Unknown scheme for proxy URL"),
        ("SSL_CERT_FILE", "/no/such/file.pem", "No such file or directory"),
        ("SSL_CERT_FILE", __file__, "no certificate or crl found"),
    ],
)
def test_a_broken_proxy_or_certificate_setting_is_reported_in_one_line(
    remote: Remote, variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=f"^the environment does not allow HTTP requests: .*{reason}.*; check SSL_CE"):
        remote.make("http://far.example")


# --- settings --------------------------------------------------------------------------------------------------------

URLS = [
    *("localhost:8000", "ftp://host", "http://", "http:///path", "http://host:99999", "http://host:word"),
    *("http://[::1", "http://host..name", f"http://{'a' * 64}.org", "http://host/a\tb"),
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_no_client_accepts_is_refused(url: str):
    with pytest.raises(ValidationError, match="write a complete URL"):
        TypeAdapter(Url).validate_python(url)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{url}=http://me:word@host/", "{url}: a URL may not hold a user or password"),
        ("{url}=http://host?api_key=1", "{url}: a URL may not hold a key"),
        ("{url}=", "{url}: input should be a valid string, not None"),
        ("in_flight=0", "in_flight: input should be greater than or equal to 1"),
        ("retries=-1", "retries: input should be greater than or equal to 0"),
        ("timeout=0", "timeout: input should be greater than 0"),
        ("timeout=1e9", "timeout: input should be less than or equal to 1000000"),
        ("api_key_env=sk-1", "api_key_env: give the name of a variable, in capitals"),
    ],
)
def test_impossible_settings_are_refused(remote: Remote, setting: str, message: str):
    url = {"http": "url", "vlm_judge": "base_url"}[remote.name]
    needed = {"http": "", "vlm_judge": "model=m judges=prompt "}[remote.name]
    server = "" if "{url}" in setting else f"{url}=http://host "
    with pytest.raises(ConfigError, match=re.escape(message.format(url=url))):
        parse_metric(f"{remote.name} {needed}{server}{setting.format(url=url)}")


@pytest.mark.parametrize(
    "line",
    [
        "http timeout=5.0 url=http://host:1/score send=all low=-1.0 high=1.0",
        "vlm_judge base_url=http://[::1]/v1 model=a/b judges=prompt structured=prompt",
    ],
)
def test_settings_are_read_back_from_their_line(line: str):
    settings = parse_metric(line)
    assert parse_metric(str(settings)) == settings
    assert settings.remote
    assert settings.measures == ("prompt" if "judges" in line else "quality")


@pytest.mark.parametrize(("name", "key"), [("http", "preference"), ("vlm_judge", "identity")])
def test_the_documentation_names_every_setting_and_its_recipe_loads(name: str, key: str, tmp_path: Path):
    text = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(f"data:\n  train_samples: 8\n{recipe}")
    settings = load_config(str(tmp_path / "recipe.yaml")).trained()[key]
    assert settings.name == name
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    documented = {setting for cell in cells for setting in re.findall(r"`(\w+)`", cell)}
    assert documented == set(type(settings).model_fields) - {"name", "role", "weight"}
