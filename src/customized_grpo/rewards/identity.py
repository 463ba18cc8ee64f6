"""Identity: cosine between a generated image and pictures of its subject, for any encoder of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from customized_grpo.data import Sample, load_image, load_mask
from customized_grpo.data.images import Source
from customized_grpo.rewards.encoder import PictureEncoder
from customized_grpo.rewards.regions import Region, centre, subject

_OVER: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "min": torch.min, "best": torch.max}

Features = TypeVar("Features", bound=PictureEncoder)


class Identity(Generic[Features]):
    """Cosine in [-1, 1]; NaN if a sample has nothing to compare with.

    against: "reference", the pictures that the policy sees, or "other_view", other pictures of the subject: with them,
        copying a reference is not the optimum.
    region: "frame" compares whole pictures; "centre" the middle square of both, its side 0.7 of the shorter side;
        "mask" the whole image with the first reference, cut to the box around its mask and grey outside the mask;
        "mask_or_frame" the same, and with the whole first reference if it has no mask.
    over: "mean", "min" or "best" of the cosines with several pictures.
    batch: images per forward pass.
    """

    def __init__(
        self,
        features: Features,
        *,
        against: Literal["reference", "other_view"] = "reference",
        region: Literal["frame", "centre", "mask", "mask_or_frame"] = "frame",
        over: Literal["mean", "min", "best"] = "mean",
        batch: int = 64,
    ):
        self.features, self.against, self.region, self.over, self.batch = features, against, region, over, batch
        self.image_region: Region = "centre" if region == "centre" else "frame"

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        generated = self.features.image_features(images, self.image_region, self.batch)
        scores = torch.full((len(samples),), torch.nan)
        for row, sample in enumerate(samples):
            targets = self._targets(sample)
            if targets:
                scores[row] = _OVER[self.over](torch.stack([generated[row] @ target for target in targets]))
        return scores

    def _targets(self, sample: Sample) -> list[Tensor]:
        """Features [C] of each picture that the image is compared with."""
        if self.region in ("mask", "mask_or_frame"):
            masked = subject_features(self.features, sample)
            if masked is None and self.region == "mask_or_frame":
                masked = source_features(self.features, sample.references[0])
            return [] if masked is None else [masked]
        sources = sample.references if self.against == "reference" else sample.other_views
        return [source_features(self.features, source, self.image_region) for source in sources]


def source_features(features: PictureEncoder, source: Source, region: Region = "frame") -> Tensor:
    """Features [C] of a picture or its centre, computed once."""

    def picture() -> Image.Image:
        return centre(load_image(source)) if region == "centre" else load_image(source)

    computed = features.cached((region, _source_key(source)), picture)
    assert computed is not None
    return computed


def subject_features(features: PictureEncoder, sample: Sample) -> Tensor | None:
    """Features [C] of the first reference as its mask shows it, computed once; None if the mask is missing or empty.

    Raises UsageError if the mask does not fit the reference.
    """
    if sample.mask is None:
        return None
    reference, mask = sample.references[0], sample.mask
    return features.cached(
        ("mask", _source_key(reference), _source_key(mask)), lambda: subject(load_image(reference), load_mask(mask))
    )


def _source_key(source: Source) -> Hashable:
    """The location of a picture, or a digest of the pixels of one in memory."""
    if not isinstance(source, Image.Image):
        return source
    picture = load_image(source)
    return picture.size, hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
