"""Prompts and references of FLUX.1-Kontext as the transformer reads them: text encoders, VAE, and what they cost.

Everything is encoded one sample at a time: an entry's bits depend neither on its neighbours nor on what is cached.
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
    "tokenizer": "CLIP (a summary beside T5's text)",
}
REMEMBERED = 256  # entries in memory, on the policy's device: an epoch asks for the same samples again


class FluxEncoder:
    """Samples to entries.

    pipe               a FluxKontextPipeline
    height, width      of the reference as the model sees it, in pixels
    max_sequence_length   T5 tokens
    offload            keep the text encoders on the CPU, except while `encode` needs them
    cache              what was encoded before, by any process; None: in memory alone
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
        self._text_is_here = not offload
        self._remembered = lru_cache(maxsize=REMEMBERED)(self._encode_one)
        self._long = LongPrompts()

    def encode(self, samples: Sequence[Sample]) -> tuple[FluxEntry, ...]:
        """One entry per sample. ValueError where a reference cannot be read."""
        try:
            return tuple(self._remembered(sample) for sample in samples)
        finally:
            if self.offload and self._text_is_here:  # once for the whole batch, and not where nothing was encoded
                self._move_text_encoders(here=False)

    def forget(self) -> None:
        """For when the encoders' weights have changed: what was encoded, and which model it was, no longer holds."""
        self._remembered.cache_clear()
        for name in ("_text_identity", "_picture_identity"):
            self.__dict__.pop(name, None)

    def position_ids(self, image: int) -> Tensor:
        """Positions (image, row, column) [R, 3] of a picture's tokens; in the base's precision, as in diffusers."""
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
        """text [L, C] and pooled [C]. Warns once of each prompt that is cut."""
        self._warn_of_long(prompt)
        if self.cache is None:
            return self._encode_text(prompt)
        key = content_key("text", self._text_identity, self.max_sequence_length, prompt)
        return self.cache.get(key, lambda: self._encode_text(prompt))

    def _encode_text(self, prompt: str) -> Tensors:
        if not self._text_is_here:
            self._move_text_encoders(here=True)
        text, pooled, _ = self.pipe.encode_prompt(
            prompt, None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"text": text[0], "pooled": pooled[0]}

    def _warn_of_long(self, prompt: str) -> None:
        limits = {"tokenizer_2": self.max_sequence_length, "tokenizer": self.pipe.tokenizer_max_length}
        lengths = {name: len(getattr(self.pipe, name)(prompt, verbose=False)["input_ids"]) for name in limits}
        if cut := [name for name in limits if lengths[name] > limits[name]]:
            parts = (f"{lengths[name]} tokens, of which {READERS[name]} reads {limits[name]}" for name in cut)
            self._long.warn(
                prompt,
                f"a prompt is longer than the model reads: {'; '.join(parts)}. What comes after them is not followed; "
                "shorten it",
            )

    def _move_text_encoders(self, *, here: bool) -> None:
        self._text_is_here = here  # first: if there is no room, `encode` takes back what has come so far
        for name in TEXT_ENCODERS:
            getattr(self.pipe, name).to(self.device if here else "cpu")

    # --- references --------------------------------------------------------------------------------------------------

    def _picture(self, picture: Image.Image) -> Tensors:
        """tokens [R, D] of an RGB picture in the model's size."""
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
            generator=torch.Generator(),  # draws noise that is not used; the global generator must not move
        )
        return {"tokens": tokens[0].float()}

    # --- which model it was: in the keys of what is kept on disk -----------------------------------------------------

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
        """What else bits follow from: a run with a cache is the run without it, bit for bit."""
        return {
            "dtype": str(self.dtype),
            "device": self.device.type,
            **{library.__name__: library.__version__ for library in (torch, diffusers, transformers)},
        }


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A library's config without its notes to itself: the path among them, and a model may be moved."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _vocabulary(tokenizer: Any) -> dict[str, Any]:
    """Everything that a tokenizer's output follows from, without how it padded and cut last time."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return {"length": tokenizer.model_max_length, **state, "padding": None, "truncation": None}
