"""The oracle as metrics: 1 where it finds the picture right, 0 where not, NaN where a sample holds no critter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from customized_grpo.critters import oracle, world
from customized_grpo.critters.weights import identity_threshold
from customized_grpo.data import Sample
from customized_grpo.data.images import to_pictures


def _verdicts(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """[N, 2]: identity right, prompt right."""
    verdicts = torch.full((len(samples), 2), torch.nan)
    threshold = identity_threshold()
    for row, (picture, sample) in enumerate(zip(to_pictures(images), samples, strict=True)):
        if "critter" in sample.extra:
            situation = world.Situation(*(sample.extra[key] for key in ("scene", "place", "hat")))
            pixels = oracle.pixels(picture)
            verdicts[row] = torch.tensor(oracle.judge(pixels, sample.extra["critter"], situation, threshold))
    return verdicts


def oracle_identity(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """The subject is the reference's."""
    return _verdicts(images, samples)[:, 0]


def oracle_prompt(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Scene, place and hat are the prompt's."""
    return _verdicts(images, samples)[:, 1]


def joint_success(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Both at once."""
    return _verdicts(images, samples).prod(dim=1)
