"""Pictures to score, and tensors of them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.critters import world
from customized_grpo.data import Sample


def as_images(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 255


def noise(seed: int) -> Image.Image:
    """Soft spots, 300 x 400."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((300, 400), Image.Resampling.BICUBIC)


def truth(sample: Sample) -> Image.Image:
    """What the prompt of a critter's sample asks for."""
    situation = world.Situation(*(sample.extra[key] for key in ("scene", "place", "hat")))
    return world.picture(sample.extra["critter"], situation)


def references(samples: Sequence[Sample]) -> list[Image.Image]:
    return [sample.reference_images()[0] for sample in samples]


def views(samples: Sequence[Sample]) -> list[Image.Image]:
    return [sample.other_view_images()[0] for sample in samples]
