import json
import logging
import re
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback import Counting, Handler, Loopback, cut, endless, slow, status, trickling
from PIL import Image

from customized_grpo.config import ConfigError, load_config, parse_metric
from customized_grpo.data import Sample
from customized_grpo.rewards import remote
from customized_grpo.rewards.http import HttpReward
from customized_grpo.rewards.remote_settings import HttpSettings
from customized_grpo.rewards.scoring import Scorer

Serve = Callable[..., Loopback]
CPU = torch.device("cpu")
KEY = "sk-very-secret-0123"
GREY = torch.linspace(0.1, 0.9, 5)[:, None, None, None].expand(5, 3, 8, 8)  # five flat images, each of its own grey


def picture(red: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new("RGB", size, (red, 0, 0))


SAMPLES = [
    Sample(f"s{i}", "dog", f"prompt {i}", (picture(10 * i),), (picture(i), picture(i + 1)), class_word="dog")
    for i in range(5)
]


def make(server: Loopback | str, **settings: Any) -> HttpReward:
    url = server if isinstance(server, str) else f"{server.url}/score"
    usual: dict[str, Any] = {"timeout": 10, "retries": 1, "batch": 2}
    reward = HttpSettings(url=url, **(usual | settings)).make(CPU)
    assert isinstance(reward, HttpReward)
    return reward


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(b64decode(text))))


def by_grey(handler: Handler, body: Any) -> None:
    """The mean of each image, so that every score tells whose it is."""
    handler.send({"scores": [float(decoded(s["image"]).mean()) / 255 for s in body["samples"]]})


def give(*scores: Any) -> Callable[[Handler, Any], None]:
    """The same scores to everything."""
    return lambda handler, _: handler.send({"scores": list(scores)})


# --- what is sent, and what is made of the answer --------------------------------------------------------------------


def test_each_image_has_its_own_score(serve: Serve):
    server = serve(by_grey)
    reward = make(server)
    torch.testing.assert_close(reward(GREY, SAMPLES), GREY[:, 0, 0, 0], atol=1 / 255, rtol=0)
    assert sorted(len(body["samples"]) for _, _, body in server.requests) == [1, 2, 2]
    assert reward.last_error is None
    assert reward.unscored == {}


def test_a_request_is_what_the_interface_says(serve: Serve):
    server = serve(by_grey)
    make(server, send="all", max_side=3)(GREY[1:2], SAMPLES[1:2])
    ((path, headers, body),) = server.requests
    assert (path, headers["content-type"]) == ("/score", "application/json")
    assert "authorization" not in headers
    (sample,) = body.pop("samples")
    assert body == {"version": 1}
    image, references, views = (sample.pop(key) for key in ("image", "references", "other_views"))
    assert sample == {"id": "s1", "prompt": "prompt 1", "class_word": "dog"}
    assert decoded(image).mean() == pytest.approx(0.3 * 255, abs=0.6)  # 8 bits
    assert decoded(image).shape == (8, 8, 3)  # the image is never shrunk
    assert [decoded(r)[0, 0, 0] for r in references] == [10]
    assert [decoded(v)[0, 0, 0] for v in views] == [1, 2]
    assert decoded(references[0]).shape == (2, 3, 3)  # 6 x 4 in 3 pixels


@pytest.mark.parametrize(("send", "sent"), [("none", (0, 0)), ("references", (1, 0)), ("other_views", (0, 2))])
def test_pictures_beside_the_image_are_sent_as_asked(serve: Serve, send: str, sent: tuple[int, int]):
    server = serve(by_grey)
    make(server, send=send)(GREY[:1], SAMPLES[:1])
    sample = server.requests[0][2]["samples"][0]
    assert (len(sample["references"]), len(sample["other_views"])) == sent


def test_null_is_an_image_without_a_score(serve: Serve):
    reward = make(serve(give(0.25, None)))
    assert reward(GREY[:2], SAMPLES[:2]).isnan().tolist() == [False, True]
    assert reward.unscored == {"null": 1}
    assert reward.last_error is not None
    assert "'s1' was given null" in reward.last_error


@pytest.mark.parametrize("lie", [7.2, -1, 10**400, float("nan"), float("inf"), 1e39], ids=lambda lie: str(lie)[:5])
def test_a_score_out_of_range_is_no_score_and_is_counted(serve: Serve, lie: float):
    """1e39 is a number, and none in float32."""
    reward = make(serve(give(0.25, lie)), **({} if lie == 1e39 else {"low": 0, "high": 1}))
    assert reward(GREY[:2], SAMPLES[:2]).isnan().tolist() == [False, True]
    assert reward.unscored == {"out_of_range": 1}
    bounds = "-3.40282e+38 to 3.40282e+38" if lie == 1e39 else "0 to 1"
    assert f"'s1' was given a score outside {bounds}: {json.dumps(lie)[:99]}" in str(reward.last_error)


def test_the_ends_of_the_range_are_scores(serve: Serve):
    reward = make(serve(give(0, 1)), low=0, high=1)
    assert reward(GREY[:2], SAMPLES[:2]).tolist() == [0, 1]


@pytest.mark.parametrize("wrong", ["0.5", True, [0.5], {"score": 1}])
def test_a_score_of_the_wrong_type_is_no_score(serve: Serve, wrong: Any):
    reward = make(serve(give(0.25, wrong)))
    assert reward(GREY[:2], SAMPLES[:2]).isnan().tolist() == [False, True]
    assert reward.unscored == {"bad_reply": 1}
    assert f"'s1' was given {json.dumps(wrong)}, which is no number" in str(reward.last_error)


# --- failures --------------------------------------------------------------------------------------------------------

FAILURES = {
    "slow": (slow, "no complete answer within 0.2 s", "no_answer"),
    "trickling": (trickling, "no complete answer within 0.2 s", "no_answer"),
    "busy": (status(429, b"too many", Retry_After="0"), "429 Too Many Requests: too many", "no_answer"),
    "overloaded": (status(503, b"loading\nthe model"), "503 Service Unavailable: loading the model", "no_answer"),
    "broken": (status(500, b"Traceback"), "500 Internal Server Error: Traceback", "refused"),
    "cut": (cut, "no answer: peer closed connection", "no_answer"),
    "endless": (endless, "no answer: a reply of more than", "no_answer"),
    "half JSON": (status(200, b'{"scores": [0.'), "the reply is not JSON", "bad_reply"),
    "deep JSON": (status(200, b"[" * 100_000), "the reply is not JSON", "bad_reply"),
    "not text": (status(200, b"\xff\xfe\x00"), "the reply is not JSON", "bad_reply"),
    "a list": (status(200, [0.5, 0.5]), 'no list under "scores": [0.5, 0.5]', "bad_reply"),
    "a number": (status(200, {"scores": 0.5}), 'no list under "scores"', "bad_reply"),
    "too few": (give(0.5), "1 scores for 2 images", "bad_reply"),
    "too many": (give(0.5, 0.5, 0.5), "3 scores for 2 images", "bad_reply"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_tried_again_and_then_nan_with_the_servers_last_words(serve: Serve, name: str):
    reply, words, cause = FAILURES[name]
    server = serve(reply)
    reward = make(server, timeout=0.2)
    assert reward(GREY[:2], SAMPLES[:2]).isnan().all()
    assert len(server.requests) == 2
    assert str(reward.last_error).startswith(f"{server.url}/score: ")
    assert words in str(reward.last_error)
    assert "\n" not in str(reward.last_error)
    assert reward.unscored == {cause: 2}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_that_passes_costs_no_score(serve: Serve, name: str):
    reward = make(serve(FAILURES[name][0], by_grey), timeout=0.2, retries=5)
    assert reward(GREY[:2], SAMPLES[:2]).isfinite().all()
    assert reward.unscored == {}


@pytest.mark.parametrize("code", [302, 400, 401, 404, 413])
def test_what_another_try_cannot_mend_is_tried_once(serve: Serve, code: int):
    server = serve(status(code, b"no", Location="http://127.0.0.1:9/"))
    reward = make(server)
    assert reward(GREY[:2], SAMPLES[:2]).isnan().all()
    assert len(server.requests) == 1
    assert f"/score: {code} " in str(reward.last_error)
    assert reward.unscored == {"refused": 2}


def test_other_requests_keep_their_scores(serve: Serve):
    def spoilt(handler: Handler, body: Any) -> None:
        at_fault = any(sample["id"] == "s2" for sample in body["samples"])
        status(500)(handler, body) if at_fault else by_grey(handler, body)

    reward = make(serve(spoilt), in_flight=1)
    assert reward(GREY, SAMPLES).isnan().tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("header", ["0.1", "0", "1", "-3", "soon", "", "86400"])
def test_how_long_the_server_asks_to_wait_is_honoured_within_bounds(
    serve: Serve, header: str, monkeypatch: pytest.MonkeyPatch
):
    pauses: list[float] = []
    server = serve(status(429, Retry_After=header), by_grey)
    reward = make(server)
    monkeypatch.setattr(reward._closed, "wait", pauses.append)
    assert reward(GREY[:2], SAMPLES[:2]).isfinite().all()
    if header in ("1", "86400"):
        assert pauses == [remote.LONGEST_PAUSE]
    else:
        assert 0 < pauses[0] <= remote.FIRST_PAUSE


def test_pauses_grow_and_leave_the_numbers_of_training_alone(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    import random

    monkeypatch.setattr(remote, "LONGEST_PAUSE", 30.0)
    pauses: list[float] = []
    server = serve(status(503))
    reward = make(server, retries=4)
    monkeypatch.setattr(reward._closed, "wait", pauses.append)
    random.seed(0)
    before = random.getstate()
    reward(GREY[:2], SAMPLES[:2])
    assert random.getstate() == before
    assert len(server.requests) == 5
    for n, pause in enumerate(pauses):
        assert 0.5 <= pause / (remote.FIRST_PAUSE * 2**n) <= 1


# --- a server that is away -------------------------------------------------------------------------------------------


@pytest.fixture
def gone(serve: Serve) -> Loopback:
    server = serve(by_grey)
    server.stop()
    return server


def test_a_server_that_is_down_from_the_beginning_leaves_nan_and_says_so(gone: Loopback):
    reward = make(gone)
    assert reward(GREY, SAMPLES).isnan().all()
    assert "Connection refused" in str(reward.last_error)
    assert reward.unscored == {"no_answer": 5}


def test_a_server_may_go_down_and_come_back(serve: Serve):
    server = serve(by_grey)
    reward = make(server)
    assert reward(GREY, SAMPLES).isfinite().all()
    server.stop()
    assert reward(GREY, SAMPLES).isnan().all()
    server.start()
    assert reward(GREY, SAMPLES).isfinite().all()


def test_a_server_that_hangs_costs_a_batch_the_time_of_one_request(serve: Serve):
    """50 requests of two tries, two at a time, would wait 10 s one after another."""
    server = serve(slow)
    reward = make(server, batch=1, in_flight=2, timeout=0.2)
    images, samples = GREY[:1].expand(50, 3, 8, 8), SAMPLES[:1] * 50
    began = time.monotonic()
    assert reward(images, samples).isnan().all()
    assert time.monotonic() - began < 3
    assert len(server.requests) <= 4
    assert reward.unscored == {"no_answer": 50}
    assert "no complete answer within" in str(reward.last_error)


def test_a_busy_server_that_answers_others_is_not_given_up(serve: Serve):
    """One request is turned away for good while others are answered and others still wait: only its image is lost."""
    another_answered, turned_away = threading.Event(), threading.Event()

    def busy_for_one(handler: Handler, body: Any) -> None:
        if body["samples"][0]["id"] == "s0":
            another_answered.wait(5)
            status(429)(handler, body)
            turned_away.set()
        else:
            if body["samples"][0]["id"] == "s2":  # s1 had its answer, or this would not be asked
                another_answered.set()
                turned_away.wait(5)
                time.sleep(0.1)  # s3 and s4 are asked once the client knows of it
            by_grey(handler, body)

    reward = make(serve(busy_for_one), batch=1, in_flight=2, retries=0)
    assert reward(GREY, SAMPLES).isnan().tolist() == [True, False, False, False, False]


def test_closing_gives_up_what_waits(serve: Serve):
    reward = make(serve(slow), batch=1, in_flight=1, retries=9, timeout=0.2)
    threading.Timer(0.1, reward.close).start()
    began = time.monotonic()
    assert reward(GREY, SAMPLES).isnan().all()
    assert time.monotonic() - began < 2


# --- many at a time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [1, 3])
def test_no_more_requests_are_in_flight_than_allowed(serve: Serve, in_flight: int):
    """Whichever threads they come from."""
    counting = Counting(by_grey)
    reward = make(serve(counting), batch=1, in_flight=in_flight)
    scorer = Scorer({"detail": reward})
    for _ in range(4):
        scorer.begin(GREY, SAMPLES)
    scores = scorer.finish(GREY.repeat(4, 1, 1, 1), SAMPLES * 4)["detail"]
    torch.testing.assert_close(scores, GREY[:, 0, 0, 0].repeat(4), atol=1 / 255, rtol=0)
    assert counting.most == in_flight


def test_what_is_wrong_with_a_sample_is_raised(serve: Serve, tmp_path: Path):
    broken = Sample("s", "dog", "a dog", (tmp_path / "missing.png",))
    with pytest.raises(ValueError, match=r"missing\.png"):
        make(serve(by_grey))(GREY[:1], [broken])


# --- keys ------------------------------------------------------------------------------------------------------------


CUTS = [(0, 0), (240, 0), (250, 0), (260, 0), (0, 1985)]  # characters and blanks before the key


def test_the_key_is_sent_and_appears_nowhere_else(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Not even where the server repeats it, across the place where a long line is cut."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    said = [status(401, f"{'x' * n}{' ' * m} Bearer {KEY} is wrong".encode()) for n, m in CUTS]
    server = serve(*said, by_grey)
    settings = HttpSettings(url=f"{server.url}/score", api_key_env="MY_KEY")
    reward = settings.make(CPU)
    assert isinstance(reward, HttpReward)
    seen = [repr(settings), str(settings), settings.model_dump_json(), repr(reward)]
    for _ in said:
        reward(GREY[:2], SAMPLES[:2])
        seen.append(str(reward.last_error))
    assert "***" in seen[4]
    reward(GREY[:2], SAMPLES[:2])
    assert {headers["authorization"] for _, headers, _ in server.requests} == {f"Bearer {KEY}"}
    seen += [caplog.text, repr(reward._client.headers)]
    assert "HTTP Request" in caplog.text
    assert not any("sk-ve" in text for text in seen)


@pytest.mark.parametrize(("value", "words"), [(None, "no such variable"), (" ", "no such variable")])
def test_a_named_key_that_is_missing_is_said_at_once(value: str | None, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ValueError, match=rf"^reward 'http': api_key_env names MY_KEY, and .* {words}$"):
        make("http://localhost:1", api_key_env="MY_KEY")


@pytest.mark.parametrize("key", [f"{KEY}\nX-Other: 1", f"{KEY} {KEY}", f"{KEY}é", f'"{KEY}"', f"{KEY}\\"])
def test_what_cannot_be_a_key_is_refused_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ValueError, match="MY_KEY holds no key") as caught:
        make("http://localhost:1", api_key_env="MY_KEY")
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("url=http://me:word@host/", "url: no user or password in it"),
        ("url=localhost:8000", "url: write a URL that begins with http"),
        ("", "url"),
        ("url=http://host low=1 high=0.5", r"low \(1\) must lie below high \(0.5\)"),
        ("url=http://host in_flight=0", "in_flight"),
        ("url=http://host retries=-1", "retries"),
        ("url=http://host timeout=0", "timeout"),
        ("url=http://host send=everything", "send"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: str, words: str):
    with pytest.raises(ConfigError, match=words):
        parse_metric(f"http {settings}")


def test_settings_are_read_back_from_their_line():
    line = "http timeout=5.0 url=http://host:1/score send=all low=-1.0 high=1.0"
    assert parse_metric(str(parse_metric(line))) == parse_metric(line)


# --- the documentation -----------------------------------------------------------------------------------------------


def test_the_documentation_names_every_setting_and_its_recipe_is_right(tmp_path: Path):
    text = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    (section,) = re.findall(r"^## http\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(f"data:\n  train_samples: 8\n{recipe}")
    assert isinstance(load_config(str(tmp_path / "recipe.yaml")).trained()["preference"], HttpSettings)
    named = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert named == set(HttpSettings.model_fields) - {"name", "role", "weight"}
