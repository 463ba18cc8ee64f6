"""Rewards: `reward(images, samples) -> Tensor[N]`, higher is better, NaN if an image cannot be scored.

    reward = rewards.build("dino against=other_view", device="cuda")
    scores = rewards.score(reward, pictures, sample)

images are [N, 3, H, W] in [0, 1] on the CPU; samples hold everything else. Every reward can serve as a metric and
every metric as a reward: the configuration decides which are trained on. `names` lists them all, docs/rewards.md says
what they measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from customized_grpo.errors import UsageError
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.by_name import names
from customized_grpo.rewards.mistakes import parse_metric
from customized_grpo.rewards.settings import Measures, Name, RewardSettings
from customized_grpo.wording import counted

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

    from customized_grpo.data import Sample

__all__ = ["Measures", "Name", "Reward", "RewardSettings", "build", "names", "score"]


def build(line: str, device: str = "cpu") -> Reward:
    """The reward of a line such as "clip_t", "dino against=other_view" or "scores.py:sharpness", ready to score.

    line    as in `evaluation.metrics`: a name, then its settings. Without `model=` it takes the usual checkpoint;
            `model=critters` is the small one for the built-in world
    device  where its model runs

    Raises InputError: an unknown name or setting, a model or device that is not there.
    """
    from customized_grpo.runtime.device import usable_device

    settings = parse_metric(line)
    return settings.with_model(settings.usual_model).make(usable_device(device))


def score(
    reward: Reward, pictures: Sequence[Image.Image | Path] | Tensor, samples: Sample | Sequence[Sample]
) -> Tensor:
    """Scores [N] of N pictures; NaN if one could not be scored.

    pictures  PIL pictures or files, of any sizes, or a tensor [N, 3, H, W] in [0, 1]
    samples   what each picture should show: one sample for all, or one for each

    Raises UsageError unless there is one sample for each picture, InputError or RunError if the reward cannot score or
    returns something else than a number for each picture, as in training.
    """
    import numpy as np
    import torch

    from customized_grpo.data.images import load_image
    from customized_grpo.rewards import scoring

    name = getattr(reward, "__name__", type(reward).__name__)
    of_each = list(samples) if isinstance(samples, Sequence) else [samples] * len(pictures)
    if len(of_each) != len(pictures):
        given = f"{counted(len(pictures), 'picture')} and {counted(len(of_each), 'sample')}"
        raise UsageError(f"{given}; give one sample, or one per picture")
    if isinstance(pictures, torch.Tensor):
        return scoring.score(name, reward, pictures, of_each)
    images = [torch.tensor(np.asarray(load_image(picture)) / 255).float().permute(2, 0, 1) for picture in pictures]
    scores = [scoring.score(name, reward, image[None], [own]) for image, own in zip(images, of_each, strict=True)]
    return torch.cat(scores) if scores else torch.empty(0)
