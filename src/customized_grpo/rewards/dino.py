"""Identity by a DINO encoder: the cosine of class tokens, and the copy-paste index from the same features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    BitImageProcessorPil,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    ViTImageProcessorPil,
    ViTModel,
)

from customized_grpo.data import Sample
from customized_grpo.files.pretrained import ModelError, loading, model_type
from customized_grpo.rewards.encoder import PictureEncoder, load_encoder, load_processor, shared
from customized_grpo.rewards.identity import Identity, source_features

Preprocess = Literal["checkpoint", "benchmark"]

# Class and settings by the `model_type` in a checkpoint's config.json. DINO's own checkpoints have no pooler.
_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dinov2": (Dinov2Model, {}),
    "dinov2_with_registers": (Dinov2WithRegistersModel, {}),
    "dinov3_vit": (DINOv3ViTModel, {}),
    "vit": (ViTModel, {"add_pooling_layer": False}),
}


class DinoFeatures(PictureEncoder):
    """Unit class tokens [N, C] of pictures, by DINO (ViT), DINOv2 or DINOv3.

    preprocess: "checkpoint" uses the checkpoint's own image processor; "benchmark" does what DreamBooth's DINO score
        is measured with: shorter side to 256 (bicubic), middle 224 x 224, ImageNet's mean and standard deviation.
    Raises ModelError if the checkpoint is of another type.
    """

    def __init__(self, model: str | Path, device: torch.device, preprocess: Preprocess = "checkpoint"):
        super().__init__()
        kind = model_type(model)
        if kind not in _KINDS:
            raise ModelError(f"dino: {model} is a {kind!r} checkpoint; use one of type {', '.join(_KINDS)}")
        encoder, settings = _KINDS[kind]
        self.processor = _processor(model, kind, preprocess)
        self.model = load_encoder(encoder, model, device, **settings)
        self.device = device

    def embed(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


def _processor(model: str | Path, kind: str, preprocess: Preprocess) -> Any:
    if preprocess == "benchmark":
        # The class's default mean and deviation are CLIP's.
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        side = {"height": 224, "width": 224}
        return BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=side, image_mean=mean, image_std=std)
    # DINOv3's own processor needs torchvision. ViT's reads sizes, filter, mean and deviation from the same file.
    if kind == "dinov3_vit":
        with loading(model):
            return ViTImageProcessorPil.from_pretrained(model)
    return load_processor(model)


class DinoIdentity(Identity[DinoFeatures]):
    """Cosine in [-1, 1] of the class tokens of image and reference, or of image and other views of the subject.

    `Identity` explains the settings, `DinoFeatures` explains `preprocess`. DINO: arXiv 2104.14294; its use as a score
    of identity: DreamBooth, arXiv 2208.12242.
    """

    def __init__(
        self, model: str | Path, *, device: torch.device, preprocess: Preprocess = "checkpoint", **settings: Any
    ):
        super().__init__(shared(DinoFeatures, model, device, preprocess), **settings)


class CopyPaste:
    """Copy-paste index: is the image closer to the reference itself than to another view of the subject?

    (angle(view, image) - angle(reference, image)) / angle(view, reference), in [-1, 1]: 1 for the reference itself,
    -1 for the other view, 0 halfway. Uses the first reference and the first other view that differs from it; NaN
    without one.
    WithAnyone, arXiv 2510.14975.
    """

    def __init__(self, model: str | Path, *, device: torch.device, batch: int = 64):
        self.features, self.batch = shared(DinoFeatures, model, device, "checkpoint"), batch

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        generated = self.features.image_features(images, batch=self.batch)
        index = torch.full((len(samples),), torch.nan)
        for i, sample in enumerate(samples):
            reference = source_features(self.features, sample.references[0])
            views = (source_features(self.features, view) for view in sample.other_views)
            view = next((view for view in views if _angle(view, reference) > _SAME), None)
            if view is not None:
                image = generated[i]
                index[i] = (_angle(view, image) - _angle(reference, image)) / _angle(view, reference)
        return index


_SAME = 1e-4  # radians; rounding alone makes smaller angles


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle between unit vectors, from the chord: acos loses digits near 1."""
    return 2 * torch.asin(((a - b).norm() / 2).clamp(max=1))
