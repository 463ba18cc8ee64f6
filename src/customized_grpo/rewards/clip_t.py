"""Prompt following by CLIP: cosine of image and text embeddings (CLIP-T, arXiv 2104.08718 without its scale)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from customized_grpo.data import Sample
from customized_grpo.rewards.clip import ClipFeatures
from customized_grpo.rewards.encoder import shared


class ClipPrompt:
    """Cosine in [-1, 1] of the picture and its prompt. Warns once of each prompt longer than the model reads."""

    def __init__(self, model: str | Path, *, device: torch.device, batch: int = 64):
        self.features, self.batch = shared(ClipFeatures, model, device), batch

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        return self.features.cosines(images, samples, self.batch)
