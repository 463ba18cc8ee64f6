from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.critters import metrics, world
from customized_grpo.critters.samples import DEVELOPMENT_CRITTERS, draw_samples
from customized_grpo.data import Sample
from customized_grpo.rewards.by_name import parse_reward

NAMES = ("oracle_identity", "oracle_prompt", "joint_success")


def as_images(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def situation(sample: Sample) -> world.Situation:
    return world.Situation(*(sample.extra[key] for key in ("scene", "place", "hat")))


def stranger() -> Sample:
    return Sample(id="photo", subject="dog", prompt="a dog", references=(Image.new("RGB", (9, 9)),))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("faithful", [1, 1, 1]), ("copied", [1, 0, 0]), ("drifted", [0, 1, 0]), ("wrong", [0, 0, 0])],
)
def test_the_four_kinds_of_picture(kind: str, expected: list[int]):
    samples = draw_samples(30, DEVELOPMENT_CRITTERS, 5)
    pictures = {
        "faithful": lambda s: world.draw(s.extra["critter"], situation(s)),
        "copied": lambda s: np.asarray(s.reference_images()[0]),
        "drifted": lambda s: world.draw(s.extra["critter"] + 1, situation(s)),
        "wrong": lambda s: np.asarray(draw_samples(1, DEVELOPMENT_CRITTERS, int(s.id[-5:]))[0].reference_images()[0]),
    }[kind]
    images = as_images([pictures(sample) for sample in samples])
    for name, value in zip(NAMES, expected, strict=True):
        assert getattr(metrics, name)(images, samples).tolist() == [value] * 30
        assert parse_reward(name).make(torch.device("cpu"))(images, samples).tolist() == [value] * 30


@pytest.mark.parametrize("name", NAMES)
def test_samples_without_a_critter_cannot_be_scored(name: str):
    (sample,) = draw_samples(1, DEVELOPMENT_CRITTERS, 6)
    true = world.draw(sample.extra["critter"], situation(sample))
    scores = getattr(metrics, name)(as_images([true] * 3), [stranger(), sample, stranger()])
    assert scores.isnan().tolist() == [True, False, True]
    assert scores[1] == 1


@pytest.mark.parametrize(
    "fields", [{"critter": "rex"}, {"critter": -1}, {"scene": "moon"}, {"place": ["left"]}, {"hat": None}, {"hat": {}}]
)
def test_fields_of_a_users_list_that_describe_no_critter_cannot_be_scored(fields: dict[str, Any]):
    (sample,) = draw_samples(1, DEVELOPMENT_CRITTERS, 6)
    true = world.draw(sample.extra["critter"], situation(sample))
    other = replace(sample, extra={**sample.extra, **fields})
    assert metrics.joint_success(as_images([true] * 2), [other, sample]).isnan().tolist() == [True, False]


def test_larger_images_are_scored():
    samples = draw_samples(8, DEVELOPMENT_CRITTERS, 7)
    images = as_images([world.draw(s.extra["critter"], situation(s)) for s in samples])
    larger = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert metrics.joint_success(larger, samples).tolist() == [1] * 8


def test_each_sample_needs_one_image():
    samples: list[Any] = draw_samples(2, DEVELOPMENT_CRITTERS, 8)
    with pytest.raises(ValueError, match="zip"):
        metrics.oracle_identity(torch.zeros(3, 3, 32, 32), samples)
