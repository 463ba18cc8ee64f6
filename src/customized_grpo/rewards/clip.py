"""CLIP's picture and text embeddings, and the two rewards that are cosines of them: CLIP-I and CLIP-T."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from customized_grpo.data import Sample
from customized_grpo.files.notices import LongPrompts
from customized_grpo.files.pretrained import ModelError, loading, model_type
from customized_grpo.rewards.encoder import PictureEncoder, load_encoder, load_processor, shared
from customized_grpo.rewards.identity import Identity


class ClipFeatures(PictureEncoder):
    """Unit embeddings [N, C] of pictures and of texts. `processor`: where tokenizer and image processor lie."""

    def __init__(self, model: str | Path, device: torch.device, processor: str | Path | None = None):
        super().__init__()
        if (kind := model_type(model)) != "clip":
            raise ModelError(f"{model} is a {kind!r} checkpoint; this reward takes one of type clip")
        self.processor = load_processor(processor or model)
        with loading(processor or model):
            self.tokenizer = CLIPTokenizer.from_pretrained(processor or model)
        self.model = load_encoder(CLIPModel, model, device)
        self.device = device
        # A tokenizer may not know its model's length; 77 tokens in all published CLIP models, both ends included.
        self.length = min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        self._long = LongPrompts()

    def embed(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], batch: int = 64) -> Tensor:
        """Unit embeddings [P, C] of P > 0 texts, float32 on the CPU. Warns once of each text that is cut."""
        parts = []
        for start in range(0, len(prompts), batch):
            some = list(prompts[start : start + batch])
            self._warn_of_long(some)
            tokens = self.tokenizer(
                some, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
            )
            parts.append(F.normalize(self.model.get_text_features(**tokens.to(self.device)).pooler_output, dim=-1))
        return torch.cat(parts).cpu()

    def cosines(self, images: Tensor, samples: Sequence[Sample], batch: int = 64) -> Tensor:
        """Cosine [N] in [-1, 1] of each image [N, 3, H, W] with its sample's prompt."""
        prompts = list(dict.fromkeys(sample.prompt for sample in samples))
        row_of = {prompt: row for row, prompt in enumerate(prompts)}
        texts = self.texts(prompts, batch)
        return (self.of_images(images, batch=batch) * texts[[row_of[s.prompt] for s in samples]]).sum(-1)

    def _warn_of_long(self, prompts: list[str]) -> None:
        lengths = [len(ids) for ids in self.tokenizer(prompts, verbose=False)["input_ids"]]
        for prompt, length in zip(prompts, lengths, strict=True):
            if length > self.length:
                self._long.warn(
                    prompt,
                    f"a prompt of {length} tokens is cut to the {self.length} that CLIP's text encoder reads; "
                    "what comes after them is not scored",
                )


class ClipIdentity(Identity[ClipFeatures]):
    """Cosine in [-1, 1] of the embeddings of image and reference; `Identity` says what the settings mean."""

    def __init__(self, model: str | Path, *, device: torch.device, **settings: Any):
        super().__init__(shared(ClipFeatures, model, device), **settings)


class ClipPrompt:
    """Cosine in [-1, 1] of the picture and its prompt. Warns once of each prompt longer than the model reads."""

    def __init__(self, model: str | Path, *, device: torch.device, batch: int = 64):
        self.features, self.batch = shared(ClipFeatures, model, device), batch

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        return self.features.cosines(images, samples, self.batch)
