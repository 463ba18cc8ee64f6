"""Prompt following by CLIP: cosine of image and text embeddings (CLIP-T, arXiv 2104.08718 without its scale)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

from customized_grpo.data import Sample
from customized_grpo.rewards.encoder import load_encoder
from customized_grpo.rewards.images import to_pictures


class ClipPrompt:
    """Cosine in [-1, 1] of the picture and its prompt; prompts beyond the model's length are truncated."""

    def __init__(self, model: str | Path, device: torch.device):
        self.processor = AutoImageProcessor.from_pretrained(model)
        self.tokenizer = CLIPTokenizer.from_pretrained(model)
        self.model = load_encoder(CLIPModel, model, device)
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        pixels = self.processor(images=to_pictures(images), return_tensors="pt")["pixel_values"]
        prompts = list(dict.fromkeys(sample.prompt for sample in samples))
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").to(self.device)
        texts = F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)
        made = F.normalize(self.model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output, dim=-1)
        rows = torch.tensor([prompts.index(sample.prompt) for sample in samples])
        return (made * texts[rows.to(self.device)]).sum(-1).cpu()
