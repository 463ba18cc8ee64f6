"""PickScore: CLIP-H tuned on users' choices between pictures for a prompt (Pick-a-Pic, arXiv 2305.01569)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils.hub import cached_file

from customized_grpo.data import Sample
from customized_grpo.files.notices import LongPrompts
from customized_grpo.files.pretrained import find, loading
from customized_grpo.rewards.clip import ClipFeatures
from customized_grpo.rewards.encoder import shared

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # of the model that PickScore was tuned from
_PARTS = ("preprocessor_config.json", "tokenizer_config.json")


class PickScore:
    """exp(logit_scale) * cosine of picture and prompt, as in the model card.

    The published model's scale is 100 and its scores are near 20; a difference of 1 means that users prefer the better
    picture at odds of e : 1. Warns once about each prompt that is too long for the model.
    processor: folder or hub id of tokenizer and image processor; None means the checkpoint's, or `PROCESSOR` if it has
        none.
    """

    def __init__(
        self, model: str | Path, *, device: torch.device, batch: int = 64, processor: str | Path | None = None
    ):
        self.features = shared(ClipFeatures, model, device, str(processor or _processor_of(model)))
        self.batch = batch
        self._long_prompts = LongPrompts()
        self.scale = self.features.model.logit_scale.exp().item()

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        return self.scale * self.features.cosines(images, samples, self._long_prompts, self.batch)


def _processor_of(model: str | Path) -> str | Path:
    find(model, "config.json")  # its error is clearer than that of `cached_file` if the hub cannot be reached
    with loading(model):
        parts = [cached_file(model, part, _raise_exceptions_for_missing_entries=False) for part in _PARTS]
    return model if all(parts) else PROCESSOR
