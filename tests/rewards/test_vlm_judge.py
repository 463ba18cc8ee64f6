"""What the reward `vlm_judge` asks and how it reads answers; test_remote.py has what it shares with other rewards."""

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loopback import Loopback, Reply, status
from PIL import Image
from remote_rewards import (
    GREY,
    REMOTES,
    SAMPLES,
    assert_retried,
    completion,
    decoded_part,
    grade,
    parts,
    picture,
)

from customized_grpo.config import ConfigError
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.rewards import build
from customized_grpo.rewards.mistakes import parse_metric
from customized_grpo.rewards.vlm_judge import RUBRICS

Serve = Callable[..., Loopback]
JUDGE = REMOTES["vlm_judge"]


# --- the question ----------------------------------------------------------------------------------------------------


def test_a_judge_of_identity_sees_the_references_and_the_image(serve: Serve):
    server = serve(grade(3))
    JUDGE.make(server)(GREY[1:2], SAMPLES[1:2])
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer none"
    assert (body["model"], body["temperature"]) == ("vlm", 0)
    content = parts(body)
    assert [part["type"] for part in content] == ["text", "text", "image_url", "text", "image_url"]
    assert content[0]["text"].startswith(RUBRICS["identity"])
    assert content[1]["text"] == "The subject: corgi\nReference pictures:"
    assert decoded_part(content[2])[0, 0, 0] == 10
    assert decoded_part(content[4])[0, 0].tolist() == [64] * 3
    assert "in 1" not in json.dumps(content)  # the prompt would tell it what to expect


def test_a_judge_of_the_prompt_sees_the_prompt_and_the_image(serve: Serve):
    server = serve(grade(3))
    JUDGE.make(server, judges="prompt")(GREY[1:2], SAMPLES[1:2])
    content = parts(server.requests[0][2])
    assert [part["type"] for part in content] == ["text", "text", "image_url"]
    assert content[0]["text"].startswith(RUBRICS["prompt"])
    assert content[1]["text"] == 'The text: "a \\"dog\\" in 1"\nThe picture:'
    assert decoded_part(content[2])[0, 0].tolist() == [64] * 3


@pytest.mark.parametrize("judges", ["identity", "prompt"])
def test_a_rubric_has_one_sentence_for_each_grade(judges: str):
    grades = re.findall(r"^([0-9]): (.*)$", RUBRICS[judges], re.MULTILINE)
    assert [number for number, _ in grades] == ["4", "3", "2", "1", "0"]
    assert all(sentence.count(".") == 1 and sentence.endswith(".") for _, sentence in grades)


def test_a_schema_forces_the_form_of_the_answer(serve: Serve):
    server = serve(grade(3))
    JUDGE.make(server)(GREY[:1], SAMPLES[:1])
    form = server.requests[0][2]["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["strict"] is True
    schema = form["json_schema"]["schema"]
    assert list(schema["properties"]) == schema["required"] == ["reason", "grade"]
    assert schema["properties"]["grade"]["enum"] == [0, 1, 2, 3, 4]
    assert schema["additionalProperties"] is False


def test_only_the_setting_replaces_the_schema_by_words(serve: Serve):
    no_schemas = status(
        400, {"error": {"message": "response_format is not supported"}}, Content_Type="application/json"
    )
    answer = 'Sure:\n```json\n{"reason": "one {odd} thing", "grade": 2}\n```'
    server = serve(no_schemas, completion(answer))
    with_schema = JUDGE.make(server)
    assert with_schema(GREY[:1], SAMPLES[:1]).isnan().all()
    assert "response_format is not supported" in with_schema.last_error
    assert JUDGE.make(server, structured="prompt")(GREY[:1], SAMPLES[:1]).tolist() == [0.5]
    body = server.requests[-1][2]
    assert "response_format" not in body
    assert '{"reason": "one short sentence", "grade": an integer from 0 to 4}' in parts(body)[0]["text"]


def test_only_large_pictures_are_shrunk(serve: Serve):
    server = serve(grade(3))
    sample = Sample("s", "dog", "a dog", (Image.new("RGB", (40, 20)), picture(0)))
    JUDGE.make(server, max_side=10)(torch.rand(1, 3, 16, 16), [sample])
    shapes = [decoded_part(part).shape[:2] for part in parts(server.requests[0][2]) if part["type"] == "image_url"]
    assert shapes == [(5, 10), (4, 6), (10, 10)]


def test_the_temperature_can_be_left_to_the_server(serve: Serve):
    server = serve(grade(3))
    JUDGE.make(server, temperature=None)(GREY[:1], SAMPLES[:1])
    assert "temperature" not in server.requests[0][2]


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "OPENAI_ADMIN_KEY"])
def test_a_key_of_the_environment_is_sent_only_if_it_is_named(
    serve: Serve, variable: str, monkeypatch: pytest.MonkeyPatch
):
    """The client alone would send OPENAI_API_KEY to any server."""
    monkeypatch.setenv(variable, "sk-secret")
    server = serve(grade(3))
    JUDGE.make(server)(GREY[:1], SAMPLES[:1])
    JUDGE.make(server, api_key_env=variable)(GREY[:1], SAMPLES[:1])
    first, second = (json.dumps(request) for request in server.requests)
    assert "sk-secret" not in first
    assert "sk-secret" in second


def test_headers_of_the_environment_are_no_key(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-secret")
    monkeypatch.setenv("MY_KEY", "sk-named")
    server = serve(grade(3))
    JUDGE.make(server)(GREY[:1], SAMPLES[:1])
    JUDGE.make(server, api_key_env="MY_KEY")(GREY[:1], SAMPLES[:1])
    assert [headers["authorization"] for _, headers, _ in server.requests] == ["Bearer none", "Bearer sk-named"]


def test_only_openai_is_told_whose_account_it_is(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    for variable in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(variable, "acme")
    server = serve(grade(3))
    JUDGE.make(server)(GREY[:1], SAMPLES[:1])
    assert "acme" not in json.dumps(server.requests[0])
    judge: Any = build("vlm_judge base_url=https://api.openai.com/v1 model=some judges=identity")
    headers = judge._client.default_headers
    assert headers["OpenAI-Organization"] == headers["OpenAI-Project"] == "acme"


@pytest.mark.parametrize("timeout", [4.0, 5.0, 6.0])
def test_the_client_waits_as_long_as_it_was_told(serve: Serve, timeout: float):
    judge: Any = JUDGE.make(serve(grade(3)), timeout=timeout)
    assert judge._client.timeout == timeout


# --- the answer ------------------------------------------------------------------------------------------------------

VERDICT = '{"reason": "the same {dog}", "grade": 3}'
THOUGHTS = 'The markings {brown, white} agree. {"grade": 2}? No, better.'


@pytest.mark.parametrize(
    "content",
    [
        f"<think>{THOUGHTS}</think>\n{VERDICT}",
        f"{THOUGHTS}</think>\n{VERDICT}",  # the server swallows the first tag
        f"<thinking>\n{THOUGHTS}\n</thinking>\n\n```json\n{VERDICT}\n```",
        f"[THINK]{THOUGHTS}[/THINK]{VERDICT}",
        f"<think>{THOUGHTS}\n{VERDICT}\n",  # never closed, but the answer stands at the end
        f"{THOUGHTS} So: {VERDICT} (on the scale {{0, ..., 4}})",
        f"```json\n{VERDICT}\n```",
        f"<answer>{VERDICT}</answer>",
        f'{{"verdict": {VERDICT}, "sure": true}}',
        f"[{VERDICT}]",
        '{"grade": 3}',
        '{"grade": 3, "reason": "two\nlines"}',
        *(
            json.dumps({"reason": "it is", "grade": text})
            for text in ("3", " 3 ", "3.0", "3/4", "3 / 4", "3 out of 4")
        ),
        '{"reason": "it is", "grade": 3.0}',
        [{"type": "thinking", "thinking": "{}"}, {"type": "text", "text": VERDICT}],
    ],
)
def test_a_grade_is_read_from_what_judges_write_around_it(serve: Serve, content: Any):
    assert JUDGE.make(serve(completion(content)), retries=0)(GREY[:1], SAMPLES[:1]).tolist() == [0.75]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (status(200, b"<html>", Content_Type="text/html"), "the reply is not a chat completion: <html>"),
        (status(200, {"choices": []}), 'the reply is not a chat completion: {"choices": []}'),
        (status(200, {"choices": None}), 'the reply is not a chat completion: {"choices": null}'),
        (completion(None), "no grade from 0 to 4 in ''"),
        (completion('{"reason": "it'), """from 0 to 4 in '{"reason": "it'"""),
        (completion("I would say 3 of 4"), "from 0 to 4 in 'I would say 3 of 4'"),
        (completion('{"reason": "same"}'), "no grade from 0 to 4"),
        (completion(f"[{VERDICT}, {VERDICT}]"), "no grade from 0 to 4"),  # of two references, perhaps
        (completion(json.dumps({"shape": {"grade": 4}, "colour": {"grade": 0}})), "no grade from 0 to 4"),
        (completion('{"reason": "the sign says "{"grade": 4}" clearly", "grade": 0}'), "no grade from 0 to 4"),
        (completion('{"reason": "same", "grade": 0, } For a 4: {"reason": "", "grade": 4}'), "no grade from 0 to 4"),
        (completion(f'{VERDICT} Or rather {{"grade": 7}}'), "no grade from 0 to 4"),
        (completion(f"<think>{VERDICT}</think>I cannot say."), "no grade from 0 to 4 in 'I cannot say.'"),
        (completion(f"<think>{VERDICT}</think>"), "no grade from 0 to 4 in '<think>{"),
        (completion(f"<think>Perhaps {VERDICT}? No, because"), "no grade from 0 to 4 in '<think>Perhaps"),
        (completion('{"grade":' * 2_000), "no grade from 0 to 4"),
        (completion(None, reasoning_content=VERDICT), "the answer is empty, all that came is reasoning: '{"),
        (completion("", reasoning=VERDICT), "the answer is empty, all that came is reasoning: '{"),
        *((grade(number), "no grade from 0 to 4") for number in (5, -1, 2.5, True, None, [3], {"of": 3})),
        *((grade(text), "no grade from 0 to 4") for text in ("5", "-3", "2.5", "3/5", "3/10", "three", "", "34")),
    ],
)
def test_an_answer_without_a_grade_is_tried_again(serve: Serve, reply: Reply, message: str):
    assert_retried(JUDGE, serve(reply, reply, reply, JUDGE.by_grey), message, "bad_reply")


@pytest.mark.parametrize(
    ("reply", "message", "cause"),
    [
        (status(404, {"error": {"message": "no model vlm"}}), "404 Not Found: .*no model vlm", "refused"),
        (completion(None, refusal="I cannot judge this"), "the judge declined: I cannot judge this", "null"),
        (completion("", finish="content_filter"), "the judge declined: content_filter", "null"),
        (completion('{"reason": "a lo', finish="length"), "was cut off at its token limit", "bad_reply"),
    ],
)
def test_an_answer_that_would_be_repeated_is_not_tried_again(serve: Serve, reply: Reply, message: str, cause: str):
    server = serve(reply)
    reward = JUDGE.make(server)
    assert reward(GREY[:1], SAMPLES[:1]).isnan().all()
    assert len(server.requests) == 1
    assert re.search(message, reward.last_error)
    assert reward.unscored == {cause: 1}


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_missing_client_is_reported_with_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UsageError, match=r'openai is not installed; pip install "customized-grpo\[judge\]"'):
        JUDGE.make("http://localhost:1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("judges=beauty model=m", "judges: input should be 'identity' or 'prompt', not 'beauty'"),
        ("judges=prompt", "model: is missing"),
        ("model=m judges=prompt structured=maybe", "structured: input should be 'schema' or 'prompt'"),
        ("model=m judges=prompt temperature=-1", "temperature: input should be greater than or equal to 0"),
    ],
)
def test_impossible_settings_are_refused(settings: str, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_metric(f"vlm_judge base_url=http://host {settings}")
