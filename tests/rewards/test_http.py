"""The interface of the reward `http`; test_remote.py has what it shares with other remote rewards."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loopback import Loopback, Reply, status
from remote_rewards import GREY, REMOTES, SAMPLES, assert_retried, decoded

from customized_grpo.config import ConfigError
from customized_grpo.rewards.mistakes import parse_metric

Serve = Callable[..., Loopback]
HTTP = REMOTES["http"]


def give(*scores: Any) -> Reply:
    """These scores for every request."""
    return status(200, {"scores": list(scores)})


def test_images_are_sent_in_batches(serve: Serve):
    server = serve(give(0.25, 0.5), give(0.75, 1), give(0))
    scores = HTTP.make(server, batch=2, in_flight=1)(GREY, SAMPLES)
    assert [[sample["id"] for sample in body["samples"]] for _, _, body in server.requests] == [
        ["s0", "s1"],
        ["s2", "s3"],
        ["s4"],
    ]
    assert scores.tolist() == [0.25, 0.5, 0.75, 1, 0]


def test_scores_are_float32(serve: Serve):
    scores = HTTP.make(serve(give(0.1)))(GREY[:1], SAMPLES[:1])
    assert torch.equal(scores, torch.tensor([0.1]))


def test_a_request_has_the_documented_form(serve: Serve):
    server = serve(give(1))
    HTTP.make(server, send="all", max_side=3)(GREY[1:2], SAMPLES[1:2])
    ((path, headers, body),) = server.requests
    assert (path, headers["content-type"]) == ("/score", "application/json")
    assert "authorization" not in headers
    (sample,) = body.pop("samples")
    assert body == {"version": 1}
    image, references, views = (sample.pop(key) for key in ("image", "references", "other_views"))
    assert sample == {"id": "s1", "prompt": 'a "dog" in 1', "class_word": "corgi"}
    assert decoded(image).mean() == 64  # .25 in 8 bits
    assert decoded(image).shape == (8, 8, 3)  # the image is never shrunk
    assert [decoded(png)[0, 0, 0] for png in references] == [10]
    assert [decoded(png)[0, 0, 0] for png in views] == [11, 1]
    assert decoded(references[0]).shape == (2, 3, 3)  # 6 x 4 in 3 pixels


@pytest.mark.parametrize(("send", "sent"), [("none", (0, 0)), ("references", (1, 0)), ("other_views", (0, 2))])
def test_send_chooses_the_pictures_that_are_sent_with_the_image(serve: Serve, send: str, sent: tuple[int, int]):
    server = serve(give(1))
    HTTP.make(server, send=send)(GREY[:1], SAMPLES[:1])
    (sample,) = server.requests[0][2]["samples"]
    assert (len(sample["references"]), len(sample["other_views"])) == sent


@pytest.mark.parametrize(
    ("score", "cause", "message"),
    [
        (None, "null", "'s1' was given null"),
        ("0.5", "bad_reply", "'s1' was given \"0.5\", which is not a number"),
        (True, "bad_reply", "'s1' was given true, which is not a number"),
        ([0.5], "bad_reply", "'s1' was given [0.5], which is not a number"),
        ({"score": 1}, "bad_reply", "'s1' was given {\"score\": 1}, which is not a number"),
    ],
)
def test_an_image_without_a_number_has_no_score(serve: Serve, score: Any, cause: str, message: str):
    reward = HTTP.make(serve(give(0.25, score)), batch=2)
    assert reward(GREY[:2], SAMPLES[:2]).isnan().tolist() == [False, True]
    assert reward.unscored == {cause: 1}
    assert message in reward.last_error


@pytest.mark.parametrize("score", [7.2, -1, 10**400, float("nan"), float("inf"), 1e39], ids=lambda s: str(s)[:5])
def test_a_score_out_of_range_is_counted_and_not_used(serve: Serve, score: float):
    """1e39 is a number, but not in float32."""
    without_bounds = score == 1e39
    reward = HTTP.make(serve(give(0.25, score)), batch=2, **({} if without_bounds else {"low": 0, "high": 1}))
    assert reward(GREY[:2], SAMPLES[:2]).isnan().tolist() == [False, True]
    assert reward.unscored == {"out_of_range": 1}
    bounds = "-3.40282e+38 to 3.40282e+38" if without_bounds else "0 to 1"
    assert f"'s1' was given a score outside {bounds}: {json.dumps(score)[:99]}" in reward.last_error


def test_the_bounds_themselves_are_scores(serve: Serve):
    reward = HTTP.make(serve(give(0, 1)), batch=2, low=0, high=1)
    assert reward(GREY[:2], SAMPLES[:2]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (status(200, [0.5]), 'the reply has no list under "scores": [0.5]'),
        (status(200, {"scores": 0.5}), 'the reply has no list under "scores": {"scores": 0.5}'),
        (status(200, b"<html>"), "the reply is not JSON: "),
        (give(), "0 scores for 1 image"),
        (give(0.5, 0.5), "2 scores for 1 image"),
    ],
)
def test_a_reply_without_a_score_per_image_is_tried_again(serve: Serve, reply: Reply, message: str):
    assert_retried(HTTP, serve(reply, reply, reply, HTTP.by_grey), message, "bad_reply")


def test_a_failed_request_costs_all_its_images(serve: Serve):
    reward = HTTP.make(serve(status(500), give(1, 1), give(1)), batch=2, in_flight=1, retries=0)
    assert reward(GREY, SAMPLES).isnan().tolist() == [True, True, False, False, False]
    assert reward.unscored == {"refused": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "url: is missing"),
        ("url=http://host low=1 high=0.5", r"low \(1\) must be less than high \(0.5\)"),
        ("url=http://host send=everything", "send: input should be 'none', 'references', 'other_views' or 'all'"),
    ],
)
def test_impossible_settings_are_refused(settings: str, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_metric(f"http {settings}")
