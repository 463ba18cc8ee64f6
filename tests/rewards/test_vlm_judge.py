import json
import logging
import re
import sys
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
from customized_grpo.rewards.remote_settings import VlmJudgeSettings
from customized_grpo.rewards.scoring import Scorer
from customized_grpo.rewards.vlm_judge import RUBRICS, Judge

Serve = Callable[..., Loopback]
CPU = torch.device("cpu")
KEY = "sk-very-secret-0123"
GREY = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 8, 8)  # five flat images, each of its own grey


def picture(red: int) -> Image.Image:
    return Image.new("RGB", (6, 4), (red, 0, 0))


SAMPLES = [
    Sample(f"s{i}", "dog", f'a "dog" in {i}', (picture(10 * i), picture(10 * i + 1)), class_word="corgi")
    for i in range(5)
]


def make(server: Loopback, **settings: Any) -> Judge:
    usual = {"timeout": 10, "retries": 1, "model": "vlm", "judges": "identity"}
    reward = VlmJudgeSettings(base_url=f"{server.url}/v1", **(usual | settings)).make(CPU)
    assert isinstance(reward, Judge)
    return reward


def says(text: str | None, *, finish: str = "stop", refusal: str | None = None) -> Callable[[Handler, Any], None]:
    """A chat completion with this text."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    completion = {"id": "c", "object": "chat.completion", "created": 0, "model": "vlm", "choices": [choice]}
    return status(200, completion, Content_Type="application/json")


def grade(number: Any) -> Callable[[Handler, Any], None]:
    return says(json.dumps({"reason": "it looks like that", "grade": number}))


def parts(body: Any) -> list[dict[str, Any]]:
    ((message),) = body["messages"]
    assert message["role"] == "user"
    return message["content"]


def decoded(part: dict[str, Any]) -> np.ndarray:
    prefix, text = part["image_url"]["url"].split(",")
    assert prefix == "data:image/png;base64"
    return np.asarray(Image.open(BytesIO(b64decode(text))))


def by_grey(handler: Handler, body: Any) -> None:
    """The brighter the image, the better: 0 to 4."""
    grade(round(float(decoded(parts(body)[-1]).mean()) / 255 * 4))(handler, body)


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_each_image_has_its_own_grade_between_0_and_1(serve: Serve):
    server = serve(by_grey)
    reward = make(server, in_flight=3)
    assert reward(GREY, SAMPLES).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert len(server.requests) == 5
    assert reward.last_error is None
    assert reward.unscored == {}


def test_a_judge_of_identity_sees_the_references_and_the_image(serve: Serve):
    server = serve(grade(3))
    make(server)(GREY[1:2], SAMPLES[1:2])
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer none"
    assert (body["model"], body["temperature"]) == ("vlm", 0)
    content = parts(body)
    kinds = [part["type"] for part in content]
    assert kinds == ["text", "text", "image_url", "image_url", "text", "image_url"]
    assert content[0]["text"].startswith(RUBRICS["identity"])
    assert content[1]["text"] == "The subject: corgi\nReference pictures:"
    assert [decoded(content[i])[0, 0, 0] for i in (2, 3)] == [10, 11]
    assert decoded(content[5])[0, 0].tolist() == [64] * 3
    assert "in 1" not in json.dumps(content)  # the prompt would tell it what to expect


def test_a_judge_of_the_prompt_sees_the_prompt_and_the_image(serve: Serve):
    server = serve(grade(3))
    make(server, judges="prompt")(GREY[1:2], SAMPLES[1:2])
    content = parts(server.requests[0][2])
    assert [part["type"] for part in content] == ["text", "text", "image_url"]
    assert content[0]["text"].startswith(RUBRICS["prompt"])
    assert content[1]["text"] == 'The text: "a \\"dog\\" in 1"\nThe picture:'
    assert decoded(content[2])[0, 0].tolist() == [64] * 3


@pytest.mark.parametrize("judges", ["identity", "prompt"])
def test_a_rubric_has_one_sentence_for_each_grade(judges: str):
    grades = re.findall(r"^([0-9]): (.*)$", RUBRICS[judges], re.MULTILINE)
    assert [number for number, _ in grades] == ["4", "3", "2", "1", "0"]
    assert all(sentence.count(".") == 1 and sentence.endswith(".") for _, sentence in grades)


def test_the_form_of_the_answer_is_forced_by_a_schema(serve: Serve):
    server = serve(grade(3))
    make(server)(GREY[:1], SAMPLES[:1])
    form = server.requests[0][2]["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["strict"] is True
    schema = form["json_schema"]["schema"]
    assert list(schema["properties"]) == schema["required"] == ["reason", "grade"]
    assert schema["properties"]["grade"]["enum"] == [0, 1, 2, 3, 4]
    assert schema["additionalProperties"] is False


def test_a_server_without_schemas_is_asked_in_words_only_where_the_settings_say_so(serve: Serve):
    no_schemas = status(
        400, {"error": {"message": "response_format is not supported"}}, Content_Type="application/json"
    )
    answer = 'Sure:\n```json\n{"reason": "one {odd} thing", "grade": 2}\n```'
    server = serve(no_schemas, says(answer))
    forced = make(server)
    assert forced(GREY[:1], SAMPLES[:1]).isnan().all()
    assert "response_format is not supported" in str(forced.last_error)
    assert make(server, structured="prompt")(GREY[:1], SAMPLES[:1]).tolist() == [0.5]
    body = server.requests[-1][2]
    assert "response_format" not in body
    assert '{"reason": "one short sentence", "grade": an integer from 0 to 4}' in parts(body)[0]["text"]


def test_large_pictures_are_shrunk_and_small_ones_are_left(serve: Serve):
    server = serve(grade(3))
    large = Sample("s", "dog", "a dog", (Image.new("RGB", (40, 20)), picture(0)))
    make(server, max_side=10)(torch.rand(1, 3, 16, 16), [large])
    images = [decoded(part).shape[:2] for part in parts(server.requests[0][2]) if part["type"] == "image_url"]
    assert images == [(5, 10), (4, 6), (10, 10)]


def test_the_temperature_can_be_left_to_the_server(serve: Serve):
    server = serve(grade(3))
    make(server, temperature=None)(GREY[:1], SAMPLES[:1])
    assert "temperature" not in server.requests[0][2]


# --- failures --------------------------------------------------------------------------------------------------------

FAILURES = {
    "slow": (slow, "no complete answer within 0.2 s", "no_answer"),
    "trickling": (trickling, "no complete answer within 0.2 s", "no_answer"),
    "busy": (status(429, b"too many", Retry_After="0"), "429 Too Many Requests: too many", "no_answer"),
    "overloaded": (status(503, b"loading\nthe model"), "503 Service Unavailable: loading the model", "no_answer"),
    "broken": (status(500, b"Traceback"), "500 Internal Server Error: Traceback", "refused"),
    "cut": (cut, "no answer: peer closed connection", "no_answer"),
    "endless": (endless, "no answer: a reply of more than", "no_answer"),
    "half JSON": (status(200, b'{"choices": [{"mess'), 'no chat completion: {"choices": [{"mess', "bad_reply"),
    "not text": (status(200, b"\xff\xfe\x00"), "no chat completion", "bad_reply"),
    "a page": (status(200, b"<html>", Content_Type="text/html"), "no chat completion: <html>", "bad_reply"),
    "no choices": (status(200, {"choices": []}), 'no chat completion: {"choices": []}', "bad_reply"),
    "null": (status(200, {"choices": None}), 'no chat completion: {"choices": null}', "bad_reply"),
    "nothing said": (says(None), "no reason and grade of 0 to 4 in ''", "bad_reply"),
    "half a verdict": (says('{"reason": "it'), """of 0 to 4 in '{"reason": "it'""", "bad_reply"),
    "words": (says("I would say 3 of 4"), "of 0 to 4 in 'I would say 3 of 4'", "bad_reply"),
    "no grade": (says('{"reason": "same"}'), "no reason and grade", "bad_reply"),
    "above the range": (grade(5), "no reason and grade of 0 to 4", "bad_reply"),
    "below the range": (grade(-1), "no reason and grade of 0 to 4", "bad_reply"),
    "between grades": (grade(2.5), "no reason and grade of 0 to 4", "bad_reply"),
    "a grade in words": (grade("3"), "no reason and grade of 0 to 4", "bad_reply"),
    "a truth": (grade(True), "no reason and grade of 0 to 4", "bad_reply"),
    "a null": (grade(None), "no reason and grade of 0 to 4", "bad_reply"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_tried_again_and_then_nan_with_the_servers_last_words(serve: Serve, name: str):
    reply, words, cause = FAILURES[name]
    server = serve(reply)
    reward = make(server, timeout=0.2)
    assert reward(GREY[4:], SAMPLES[4:]).isnan().all()
    assert len(server.requests) == 2
    assert str(reward.last_error).startswith(f"{server.url}/v1: ")
    assert words in str(reward.last_error)
    assert "\n" not in str(reward.last_error)
    assert reward.unscored == {cause: 1}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_that_passes_costs_no_grade(serve: Serve, name: str):
    reward = make(serve(FAILURES[name][0], by_grey), timeout=0.2, retries=5)
    assert reward(GREY[4:], SAMPLES[4:]).tolist() == [1]
    assert reward.unscored == {}


@pytest.mark.parametrize(
    ("reply", "words", "cause"),
    [
        (status(302, b"", Location="http://127.0.0.1:9/"), "302 Found", "refused"),
        (status(404, {"error": {"message": "no model vlm"}}), "404 Not Found: .*no model vlm", "refused"),
        (says(None, refusal="I cannot judge this"), "the judge declined: I cannot judge this", "null"),
        (says("", finish="content_filter"), "the judge declined: content_filter", "null"),
        (says('{"reason": "a lo', finish="length"), "was cut off, at its limit of tokens", "bad_reply"),
    ],
)
def test_what_another_try_cannot_mend_is_tried_once(serve: Serve, reply: Any, words: str, cause: str):
    server = serve(reply)
    reward = make(server)
    assert reward(GREY[:1], SAMPLES[:1]).isnan().all()
    assert len(server.requests) == 1
    assert re.search(words, str(reward.last_error))
    assert reward.unscored == {cause: 1}


def test_one_image_that_cannot_be_judged_leaves_the_others_their_grades(serve: Serve):
    def stuck(handler: Handler, body: Any) -> None:
        black = decoded(parts(body)[-1]).max() == 0
        says("well...")(handler, body) if black else by_grey(handler, body)

    scores = make(serve(stuck), in_flight=1)(GREY, SAMPLES)
    assert scores.isnan().tolist() == [True, False, False, False, False]
    assert scores[1:].tolist() == [0.25, 0.5, 0.75, 1]


def test_a_judge_may_be_down_from_the_beginning_and_come_back(serve: Serve):
    server = serve(by_grey)
    server.stop()
    reward = make(server)
    assert reward(GREY, SAMPLES).isnan().all()
    assert "Connection refused" in str(reward.last_error)
    assert reward.unscored == {"no_answer": 5}
    server.start()
    assert reward(GREY, SAMPLES).isfinite().all()


def test_a_judge_that_hangs_costs_a_batch_the_time_of_one_request(serve: Serve):
    reward = make(serve(slow), in_flight=2, timeout=0.2)
    began = time.monotonic()
    assert reward(GREY[:1].expand(50, 3, 8, 8), SAMPLES[:1] * 50).isnan().all()
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("in_flight", [1, 3])
def test_no_more_requests_are_in_flight_than_allowed(serve: Serve, in_flight: int):
    counting = Counting(by_grey)
    scorer = Scorer({"judge": make(serve(counting), in_flight=in_flight)})
    for _ in range(3):
        scorer.begin(GREY, SAMPLES)
    scores = scorer.finish(GREY.repeat(3, 1, 1, 1), SAMPLES * 3)["judge"]
    assert scores.tolist() == [0, 0.25, 0.5, 0.75, 1] * 3
    assert counting.most == in_flight


# --- keys and settings -----------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_appears_nowhere_else(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)
    server = serve(
        status(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
        says(f"{KEY}?"),
        says(f"{'x' * 190}{KEY}"),
        by_grey,
    )
    settings = VlmJudgeSettings(base_url=server.url, model="vlm", judges="prompt", api_key_env="MY_KEY", retries=0)
    reward = settings.make(CPU)
    assert isinstance(reward, Judge)
    seen = [repr(settings), str(settings), settings.model_dump_json(), repr(reward), repr(reward._client)]
    for expected in ("provided: ***", "'***?'", "xx***"):
        assert reward(GREY[:1], SAMPLES[:1]).isnan().all()
        assert expected in str(reward.last_error)
        seen.append(str(reward.last_error))
    assert reward(GREY[:1], SAMPLES[:1]).isfinite().all()
    assert {headers["authorization"] for _, headers, _ in server.requests} == {f"Bearer {KEY}"}
    assert "HTTP Request" in caplog.text
    assert not any("sk-ve" in text for text in [*seen, caplog.text])


def test_no_key_of_the_environment_is_sent_where_none_was_named(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    """The client by itself would take OPENAI_API_KEY to whatever server it is pointed at."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, KEY)
    server = serve(by_grey)
    make(server)(GREY[:1], SAMPLES[:1])
    assert KEY not in json.dumps(server.requests)


def test_a_named_key_that_is_missing_is_said_at_once(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(
        ValueError, match=r"^reward 'vlm_judge': api_key_env names OPENAI_API_KEY, and the environment"
    ):
        make(serve(by_grey), api_key_env="OPENAI_API_KEY")


def test_a_missing_client_is_said_with_the_extra_that_brings_it(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r'openai is not installed; pip install "customized-grpo\[judge\]"'):
        make(serve(by_grey))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("base_url=http://me:word@host/ model=m judges=prompt", "base_url: no user or password in it"),
        ("base_url=http://host model=m judges=beauty", "judges"),
        ("base_url=http://host judges=prompt", "model"),
        ("base_url=http://host model=m judges=prompt structured=maybe", "structured"),
        ("base_url=http://host model=m judges=prompt temperature=-1", "temperature"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: str, words: str):
    with pytest.raises(ConfigError, match=words):
        parse_metric(f"vlm_judge {settings}")


def test_settings_are_read_back_from_their_line_and_say_what_is_judged():
    settings = parse_metric("vlm_judge base_url=http://host/v1 model=a/b judges=prompt structured=prompt")
    assert parse_metric(str(settings)) == settings
    assert settings.measures == "prompt"
    assert settings.remote


def test_closing_gives_up_what_waits(serve: Serve):
    reward = make(serve(slow), in_flight=1, retries=9, timeout=0.2)
    threading.Timer(0.1, reward.close).start()
    began = time.monotonic()
    assert reward(GREY, SAMPLES).isnan().all()
    assert time.monotonic() - began < 2


# --- the documentation -----------------------------------------------------------------------------------------------


def test_the_documentation_names_every_setting_and_its_recipe_is_right(tmp_path: Path):
    text = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    (section,) = re.findall(r"^## vlm_judge\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(f"data:\n  train_samples: 8\n{recipe}")
    assert isinstance(load_config(str(tmp_path / "recipe.yaml")).trained()["identity"], VlmJudgeSettings)
    named = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert named == set(VlmJudgeSettings.model_fields) - {"name", "role", "weight"}
