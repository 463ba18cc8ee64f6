"""Identity by a DINOv2 encoder: cosine of class tokens, and the copy-paste index made from the same features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, Dinov2Model

from customized_grpo.data import Sample
from customized_grpo.rewards.encoder import load_encoder
from customized_grpo.rewards.images import to_pictures


class DinoFeatures:
    """Unit class tokens [N, C] of pictures, prepared by the checkpoint's own image processor."""

    def __init__(self, model: str | Path, device: torch.device):
        self.processor = AutoImageProcessor.from_pretrained(model)
        self.model = load_encoder(Dinov2Model, model, device)
        self.device = device
        self._known: dict[tuple[str, Sample], Tensor] = {}

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = self.processor(images=list(pictures), return_tensors="pt")["pixel_values"].to(self.device)
        return F.normalize(self.model(pixel_values=pixels).last_hidden_state[:, 0], dim=-1).cpu()

    def of_sample(self, sample: Sample, view: str) -> Tensor:
        """Features [C] of a sample's first reference or first other view, computed once a sample."""
        key = (view, sample)
        if key not in self._known:
            views = sample.reference_images() if view == "reference" else sample.other_view_images()
            self._known[key] = self(views[:1])[0]
        return self._known[key]


class DinoIdentity:
    """Cosine in [-1, 1] of image and reference, or of image and another view of the subject.

    With `against="other_view"` copying the reference is not the optimum; a sample without another view is NaN.
    """

    def __init__(self, model: str | Path, against: str, device: torch.device):
        self.features, self.against = DinoFeatures(model, device), against

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        made = self.features(to_pictures(images))
        cosines = torch.full((len(samples),), torch.nan)
        for index, sample in enumerate(samples):
            if self.against == "reference" or sample.other_views:
                cosines[index] = made[index] @ self.features.of_sample(sample, self.against)
        return cosines


class CopyPaste:
    """Copy-paste index: is the image nearer to the very reference than to another view of the subject?

    (angle(view, image) - angle(reference, image)) / angle(view, reference), in [-1, 1]: 1 for the reference itself,
    -1 for the other view, 0 halfway. WithAnyone, arXiv 2510.14975. NaN for a sample without another view.
    """

    def __init__(self, model: str | Path, device: torch.device):
        self.features = DinoFeatures(model, device)

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        made = self.features(to_pictures(images))
        index = torch.full((len(samples),), torch.nan)
        for i, sample in enumerate(samples):
            if sample.other_views:
                reference, view = (self.features.of_sample(sample, v) for v in ("reference", "other_view"))
                between = _angle(view, reference)
                index[i] = (_angle(view, made[i]) - _angle(reference, made[i])) / between
        return index


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle between unit vectors; by the chord, because acos loses digits near 1."""
    return 2 * torch.asin(((a - b).norm() / 2).clamp(max=1))
