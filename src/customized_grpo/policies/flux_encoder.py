"""Prompts and references of FLUX.1-Kontext, encoded for the transformer by the text encoders and the VAE.

Samples are encoded one at a time, so the bits of an entry depend neither on its batch nor on what is cached.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image
from torch import Tensor

from customized_grpo.data import Sample, fit
from customized_grpo.files.notices import LongPrompts
from customized_grpo.policies.condition_cache import ConditionCache, Tensors, content_key, model_identity
from customized_grpo.policies.flux_condition import FluxEntry

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
READERS = {
    "tokenizer_2": "T5 (model.max_sequence_length, at most 512)",
    "tokenizer": "CLIP (only a summary in addition to T5's text)",
}
REMEMBERED = 256  # entries kept on the policy's device: the next epoch needs the same samples again


class FluxEncoder:
    """Encodes samples into entries.

    pipe                  a FluxKontextPipeline
    height, width         to which references are resized, in pixels
    max_sequence_length   T5 tokens
    offload               keep the text encoders on the CPU, except while `encode` needs them
    cache                 on disk, shared with other processes; None: only in memory
    """

    def __init__(
        self,
        pipe: Any,
        *,
        device: torch.device,
        dtype: torch.dtype,
        height: int,
        width: int,
        max_sequence_length: int,
        offload: bool,
        cache: ConditionCache | None,
    ):
        self.pipe, self.device, self.dtype = pipe, device, dtype
        self.height, self.width = height, width
        self.max_sequence_length = max_sequence_length
        self.offload, self.cache = offload, cache
        self._text_on_device = not offload
        self._remembered = lru_cache(maxsize=REMEMBERED)(self._encode_one)
        self._long = LongPrompts()

    def encode(self, samples: Sequence[Sample]) -> tuple[FluxEntry, ...]:
        """One entry per sample. Raises DataError if a reference cannot be read."""
        try:
            return tuple(self._remembered(sample) for sample in samples)
        finally:
            if self.offload and self._text_on_device:  # once per batch, and only if something was encoded
                self._move_text_encoders(to_device=False)

    def position_ids(self, image: int) -> Tensor:
        """Positions (image, row, column) [R, 3] of a picture's tokens, in the weights' dtype, as in diffusers."""
        patch = 2 * self.pipe.vae_scale_factor
        ids = self.pipe._prepare_latent_image_ids(
            1, self.height // patch, self.width // patch, self.device, self.dtype
        )
        ids[..., 0] = image
        return ids

    @torch.no_grad()
    def _encode_one(self, sample: Sample) -> FluxEntry:
        text = self._text(sample.prompt)
        pictures = [fit(image, self.width, self.height) for image in sample.reference_images()]
        return FluxEntry(
            text["text"].to(self.device),
            text["pooled"].to(self.device),
            torch.cat([self._picture(picture)["tokens"].to(self.device) for picture in pictures]),
            torch.cat([self.position_ids(image) for image in range(1, len(pictures) + 1)]),
            len(pictures),
        )

    # --- prompts -----------------------------------------------------------------------------------------------------

    def _text(self, prompt: str) -> Tensors:
        """text [L, C] and pooled [C]. Warns once about each prompt that is too long."""
        self._warn_if_long(prompt)
        if self.cache is None:
            return self._encode_text(prompt)
        key = content_key("text", self._text_identity, self.max_sequence_length, prompt)
        return self.cache.get(key, lambda: self._encode_text(prompt))

    def _encode_text(self, prompt: str) -> Tensors:
        if not self._text_on_device:
            self._move_text_encoders(to_device=True)
        text, pooled, _ = self.pipe.encode_prompt(
            prompt, None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"text": text[0], "pooled": pooled[0]}

    def _warn_if_long(self, prompt: str) -> None:
        limits = {"tokenizer_2": self.max_sequence_length, "tokenizer": self.pipe.tokenizer_max_length}
        lengths = {name: len(getattr(self.pipe, name)(prompt, verbose=False)["input_ids"]) for name in limits}
        if cut := [name for name in limits if lengths[name] > limits[name]]:
            parts = (f"{lengths[name]} tokens, of which {READERS[name]} reads {limits[name]}" for name in cut)
            self._long.warn(
                prompt,
                f"a prompt is longer than the model reads: {'; '.join(parts)}. The rest is ignored; shorten it",
            )

    def _move_text_encoders(self, *, to_device: bool) -> None:
        self._text_on_device = to_device  # set first: if memory runs out halfway, `encode` moves both back
        for name in TEXT_ENCODERS:
            getattr(self.pipe, name).to(self.device if to_device else "cpu")

    # --- references --------------------------------------------------------------------------------------------------

    def _picture(self, picture: Image.Image) -> Tensors:
        """tokens [R, D] of an RGB picture of the model's size."""
        if self.cache is None:
            return self._encode_picture(picture)
        key = content_key("picture", self._picture_identity, self.width, self.height, picture.tobytes())
        return self.cache.get(key, lambda: self._encode_picture(picture))

    def _encode_picture(self, picture: Image.Image) -> Tensors:
        _, tokens, _, _ = self.pipe.prepare_latents(
            self.pipe.image_processor.preprocess(picture, self.height, self.width),
            1,
            self.pipe.transformer.config.in_channels // 4,
            self.height,
            self.width,
            self.dtype,
            self.device,
            generator=torch.Generator(),  # for noise that is thrown away: the global generator must not advance
        )
        return {"tokens": tokens[0].float()}

    # --- the model's identity: part of the keys on disk --------------------------------------------------------------

    @cached_property
    def _text_identity(self) -> str:
        modules = {name: getattr(self.pipe, name) for name in TEXT_ENCODERS}
        settings = {name: _settings(module.config.to_dict()) for name, module in modules.items()}
        tokenizers = {name: _vocabulary(getattr(self.pipe, name)) for name in TOKENIZERS}
        return model_identity(modules, settings | tokenizers | self._computed_by())

    @cached_property
    def _picture_identity(self) -> str:
        settings = {name: _settings(getattr(self.pipe, name).config) for name in ("vae", "image_processor")}
        return model_identity({"vae": self.pipe.vae}, settings | self._computed_by())

    def _computed_by(self) -> dict[str, str]:
        """What else decides the bits: with a cache a run must equal the run without it, bit for bit."""
        return {
            "dtype": str(self.dtype),
            "device": self.device.type,
            **{library.__name__: library.__version__ for library in (torch, diffusers, transformers)},
        }


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A library's config without its private entries: they hold the model's path, and a model may be moved."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _vocabulary(tokenizer: Any) -> dict[str, Any]:
    """Everything that decides a tokenizer's output, but not the padding and truncation of its last call."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return {"length": tokenizer.model_max_length, **state, "padding": None, "truncation": None}
