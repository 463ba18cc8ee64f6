"""The oracle as metrics: 1 if it accepts a picture, 0 if not, NaN if the sample does not describe a critter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from customized_grpo.critters import oracle, world
from customized_grpo.critters.samples import case_of
from customized_grpo.critters.weights import identity_threshold
from customized_grpo.data import Sample
from customized_grpo.data.images import to_pictures


def _verdicts(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """[N, 2]: identity right, prompt right."""
    verdicts = torch.full((len(samples), 2), torch.nan)
    for row, (picture, sample) in enumerate(zip(to_pictures(images), samples, strict=True)):
        if (case := case_of(sample)) is not None:
            source = world.world_of(case[1])
            verdict = oracle.judge(oracle.pixels(picture), *case, identity_threshold(source.name))
            verdicts[row] = torch.tensor(verdict)
    return verdicts


def oracle_identity(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Whether the subject is that of the reference."""
    return _verdicts(images, samples)[:, 0]


def oracle_prompt(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Whether scene, place, and hat or dye are those of the prompt."""
    return _verdicts(images, samples)[:, 1]


def joint_success(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Whether subject and prompt are both right."""
    return _verdicts(images, samples).prod(dim=1)
