"""PickScore: CLIP-H tuned to the choices of users among pictures for a prompt (Pick-a-Pic, arXiv 2305.01569)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils.hub import cached_file

from customized_grpo.data import Sample
from customized_grpo.files.pretrained import find
from customized_grpo.rewards.clip import ClipFeatures
from customized_grpo.rewards.encoder import shared

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # what PickScore was tuned from
_PARTS = ("preprocessor_config.json", "tokenizer_config.json")


class PickScore:
    """exp(logit_scale) * cosine of picture and prompt, as the model card scores.

    The published model's scale is 100 and its scores lie near 20: a difference of 1 means that e : 1 users would
    choose the better picture. Warns once of each prompt longer than the model reads.
    processor: where tokenizer and image processor lie; None: with the checkpoint, or where it has none, `PROCESSOR`.
    """

    def __init__(
        self, model: str | Path, *, device: torch.device, batch: int = 64, processor: str | Path | None = None
    ):
        self.features = shared(ClipFeatures, model, device, str(processor or _processor_of(model)))
        self.batch = batch
        self.scale = self.features.model.logit_scale.exp().item()

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        return self.scale * self.features.cosines(images, samples, self.batch)


def _processor_of(model: str | Path) -> str | Path:
    find(model, "config.json")  # before anything else is asked of a hub that may not answer
    parts = [cached_file(model, part, _raise_exceptions_for_missing_entries=False) for part in _PARTS]
    return model if all(parts) else PROCESSOR
