"""CLIP's embeddings of pictures and texts, and the two rewards that are cosines of them: CLIP-I and CLIP-T."""

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
    """Unit embeddings [N, C] of pictures and of texts.

    processor: folder or hub id of tokenizer and image processor; None means the model's own.
    Raises ModelError if the checkpoint is not CLIP or the tokenizer is another model's.
    """

    def __init__(self, model: str | Path, device: torch.device, processor: str | Path | None = None):
        super().__init__()
        if (kind := model_type(model)) != "clip":
            raise ModelError(f"{model} is a {kind!r} checkpoint; this reward needs one of type clip")
        self.processor = load_processor(processor or model)
        with loading(processor or model):
            self.tokenizer = CLIPTokenizer.from_pretrained(processor or model)
        self.model = load_encoder(CLIPModel, model, device)
        self.device = device
        text = self.model.config.text_config
        if len(self.tokenizer) > text.vocab_size:
            raise ModelError(
                f"the tokenizer of {processor or model} has {len(self.tokenizer)} tokens, but {model} knows only "
                f"{text.vocab_size}; use the tokenizer that the model was trained with"
            )
        # A tokenizer may not know its model's length: 77 tokens in all published CLIP models, including both ends.
        self.length = min(self.tokenizer.model_max_length, text.max_position_embeddings)

    def embed(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], long_prompts: LongPrompts, batch: int = 64) -> Tensor:
        """Unit embeddings [P, C] of P > 0 texts, float32 on the CPU. Tells `long_prompts` of each text that is cut."""
        parts = []
        for start in range(0, len(prompts), batch):
            part = list(prompts[start : start + batch])
            self._warn_if_long(part, long_prompts)
            tokens = self.tokenizer(
                part, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
            )
            parts.append(F.normalize(self.model.get_text_features(**tokens.to(self.device)).pooler_output, dim=-1))
        return torch.cat(parts).cpu()

    def cosines(self, images: Tensor, samples: Sequence[Sample], long_prompts: LongPrompts, batch: int = 64) -> Tensor:
        """Cosine [N] in [-1, 1] of each image [N, 3, H, W] with its sample's prompt.

        long_prompts: the reward's own, because rewards of later runs in this process may share these features.
        """
        prompts = list(dict.fromkeys(sample.prompt for sample in samples))
        row_of = {prompt: row for row, prompt in enumerate(prompts)}
        texts = self.texts(prompts, long_prompts, batch)
        return (self.image_features(images, batch=batch) * texts[[row_of[s.prompt] for s in samples]]).sum(-1)

    def _warn_if_long(self, prompts: list[str], long_prompts: LongPrompts) -> None:
        lengths = [len(ids) for ids in self.tokenizer(prompts, verbose=False)["input_ids"]]
        for prompt, length in zip(prompts, lengths, strict=True):
            if length > self.length:
                long_prompts.warn(
                    prompt,
                    f"a prompt of {length} tokens is cut to the {self.length} that CLIP's text encoder reads; "
                    "the rest is not scored",
                )


class ClipIdentity(Identity[ClipFeatures]):
    """CLIP-I: cosine in [-1, 1] of the embeddings of image and reference. `Identity` explains the settings."""

    def __init__(self, model: str | Path, *, device: torch.device, **settings: Any):
        super().__init__(shared(ClipFeatures, model, device), **settings)


class ClipPrompt:
    """CLIP-T: cosine in [-1, 1] of image and prompt. Warns once about each prompt that is too long for the model."""

    def __init__(self, model: str | Path, *, device: torch.device, batch: int = 64):
        self.features, self.batch = shared(ClipFeatures, model, device), batch
        self._long_prompts = LongPrompts()

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        return self.features.cosines(images, samples, self._long_prompts, self.batch)
