"""Identity: cosine between a generated image and pictures of its subject, over any encoder of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from customized_grpo.data import Sample, load_image, load_mask
from customized_grpo.data.images import Source
from customized_grpo.rewards.encoder import PictureEncoder
from customized_grpo.rewards.images import Region, centre, identify, subject

_OVER: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "min": torch.min, "best": torch.max}

Features = TypeVar("Features", bound=PictureEncoder)


class Identity(Generic[Features]):
    """Cosine in [-1, 1], NaN where a sample has nothing to compare with.

    against: "reference", the pictures that the policy is shown, or "other_view", the subject's other pictures: then
        copying a reference is not the optimum.
    region: "frame" compares whole pictures; "centre" the middle square of both, its side 0.7 of the shorter side;
        "mask" the whole image with the first reference, cut to the box around its mask and grey outside the mask.
    over: "mean", "min" or "best" cosine where several pictures are compared with.
    batch: images per forward pass.
    """

    def __init__(
        self,
        features: Features,
        *,
        against: Literal["reference", "other_view"] = "reference",
        region: Literal["frame", "centre", "mask"] = "frame",
        over: Literal["mean", "min", "best"] = "mean",
        batch: int = 64,
    ):
        self.features, self.against, self.region, self.over, self.batch = features, against, region, over, batch
        self.part: Region = "centre" if region == "centre" else "frame"  # of the image

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        made = self.features.of_images(images, self.part, self.batch)
        scores = torch.full((len(samples),), torch.nan)
        for row, sample in enumerate(samples):
            compared = self._compared(sample)
            if compared:
                scores[row] = _OVER[self.over](torch.stack([made[row] @ features for features in compared]))
        return scores

    def _compared(self, sample: Sample) -> list[Tensor]:
        """Features [C] of each picture that the image is compared with."""
        if self.region == "mask":
            masked = of_subject(self.features, sample)
            return [] if masked is None else [masked]
        sources = sample.references if self.against == "reference" else sample.other_views
        return [of_source(self.features, source, self.part) for source in sources]


def of_source(features: PictureEncoder, source: Source, region: Region = "frame") -> Tensor:
    """Features [C] of a picture or its middle, computed once."""

    def opened():
        return centre(load_image(source)) if region == "centre" else load_image(source)

    found = features.once((region, identify(source)), opened)
    assert found is not None
    return found


def of_subject(features: PictureEncoder, sample: Sample) -> Tensor | None:
    """Features [C] of the first reference as its mask shows it, computed once; None without a mask or a subject in it.

    Raises ValueError where the mask does not fit the reference.
    """
    if sample.mask is None:
        return None
    reference, mask = sample.references[0], sample.mask
    return features.once(
        ("mask", identify(reference), identify(mask)), lambda: subject(load_image(reference), load_mask(mask))
    )
