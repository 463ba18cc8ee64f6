"""Prompts and references, encoded for a transformer. Each family says how; what is here holds for all of them.

Samples are encoded one at a time, so the bits of an entry depend neither on its batch nor on what is cached.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar, NamedTuple

import diffusers
import torch
import transformers
from PIL import Image
from torch import Tensor

from customized_grpo.data import Sample
from customized_grpo.files.notices import LongPrompts
from customized_grpo.policies.condition_cache import ConditionCache, Tensors, content_key, model_identity
from customized_grpo.policies.conditions import Entry, Grid
from customized_grpo.sections import Model

REMEMBERED = 256  # entries kept on the policy's device: the next epoch needs the same samples again


class Reading(NamedTuple):
    """A text, which of the pipeline's tokenizers divides it, who reads it, in words, and how many tokens of it."""

    tokenizer: str
    text: str
    reader: str
    limit: int


class Encoder(ABC):
    """Encodes samples into entries.

    pipe    the family's diffusers pipeline
    model   the section of the configuration: picture size, length of prompts, offload and cache
    device  of the entries
    dtype   of the pipeline's weights
    """

    text_encoders: ClassVar[tuple[str, ...]]  # the pipeline's parts that read prompts
    tokenizers: ClassVar[tuple[str, ...]]

    def __init__(self, pipe: Any, model: Model, device: torch.device, dtype: torch.dtype):
        self.pipe, self.device, self.dtype = pipe, device, dtype
        self.height, self.width, self.reference_size = model.height, model.width, model.reference_size
        self.patch: int = 2 * pipe.vae_scale_factor  # pixels of a token's side
        self.max_sequence_length = model.max_sequence_length
        self.offload = model.offload_text_encoders
        self.cache = None if model.condition_cache is None else ConditionCache(model.condition_cache)
        self._text_on_device = not self.offload
        self._remembered = lru_cache(maxsize=REMEMBERED)(self._encode_one)
        self._long = LongPrompts()

    def encode(self, samples: Sequence[Sample]) -> tuple[Entry, ...]:
        """One entry per sample. Raises DataError if a reference cannot be read."""
        try:
            return tuple(self._remembered(sample, self.height, self.width) for sample in samples)
        finally:
            if self.offload and self._text_on_device:  # once per batch, and only if something was encoded
                self._move_text_encoders(to_device=False)

    @torch.no_grad()
    def _encode_one(self, sample: Sample, height: int, width: int) -> Entry:  # noqa: ARG002 (they are part of the key)
        return self.entry(sample)

    def entry(self, sample: Sample) -> Entry:
        """The sample, encoded; called without gradients."""
        return self._entry(sample, self.texts(sample))

    def blank_entry(self, sample: Sample) -> Entry:
        """`entry` with zeros for the prompt: its shapes, without text encoders and tokenizers."""
        return self._entry(sample, self.blank_texts(sample))

    def _entry(self, sample: Sample, texts: Tensors) -> Entry:
        tokens, sizes = self._read_pictures(self.resize(sample))
        return Entry({**texts, "reference": tokens}, sizes)

    # --- what each family says ---------------------------------------------------------------------------------------

    @abstractmethod
    def texts(self, sample: Sample) -> Tensors:
        """What the prompt adds to the entry."""

    @abstractmethod
    def blank_texts(self, sample: Sample) -> Tensors:
        """Zeros in the shapes of `texts`, for a prompt as long as they are at most."""

    @abstractmethod
    def resize(self, sample: Sample) -> list[Image.Image]:
        """The references in the sizes in which the model gets them, multiples of a token's side. RGB."""

    @abstractmethod
    def encode_picture(self, picture: Image.Image) -> Tensor:
        """The tokens [R, D] of one reference."""

    # --- for the families --------------------------------------------------------------------------------------------

    def read_text(self, compute: Callable[[], Tensors], *parts: str | bytes | int) -> Tensors:
        """What the text encoders make of a prompt: from the cache, or else computed with the encoders on the device.

        parts  everything that decides it, apart from the model
        """

        def on_device() -> Tensors:
            if not self._text_on_device:
                self._move_text_encoders(to_device=True)
            return compute()

        tensors = on_device() if self.cache is None else self._cached("text", self._text_identity, on_device, *parts)
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def blank_text(self, tokens: int) -> Tensor:
        """Zeros [tokens, C] in the shape of an encoded text."""
        width = self.pipe.transformer.config.joint_attention_dim
        return torch.zeros(tokens, width, dtype=self.dtype, device=self.device)

    def warn_if_long(self, prompt: str, *readings: Reading) -> None:
        """Warn once about a prompt of which only a part is read."""
        counts = [(reading, self._count(reading)) for reading in readings]
        parts = [
            f"{count} tokens, of which {reading.reader} reads {reading.limit}"
            for reading, count in counts
            if count > reading.limit
        ]
        if parts:
            self._long.warn(
                prompt, f"a prompt is longer than the model reads: {'; '.join(parts)}. The rest is ignored; shorten it"
            )

    def _count(self, reading: Reading) -> int:
        return len(getattr(self.pipe, reading.tokenizer)(reading.text, verbose=False)["input_ids"])

    # --- references --------------------------------------------------------------------------------------------------

    def _read_pictures(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, tuple[Grid, ...]]:
        """The tokens of pictures [R, D], one after another, from the cache or encoded; and their sizes in tokens."""
        tokens = torch.cat([self._read_picture(picture) for picture in pictures])
        return tokens, tuple((picture.height // self.patch, picture.width // self.patch) for picture in pictures)

    def _read_picture(self, picture: Image.Image) -> Tensor:
        if self.cache is None:
            return self.encode_picture(picture).to(self.device)
        parts = (picture.width, picture.height, picture.tobytes())
        tensors = self._cached(
            "picture", self._picture_identity, lambda: {"tokens": self.encode_picture(picture)}, *parts
        )
        return tensors["tokens"].to(self.device)

    # --- offload and cache -------------------------------------------------------------------------------------------

    def _move_text_encoders(self, *, to_device: bool) -> None:
        self._text_on_device = to_device  # set first: if memory runs out halfway, `encode` moves both back
        for name in self.text_encoders:
            getattr(self.pipe, name).to(self.device if to_device else "cpu")

    def _cached(self, kind: str, identity: str, compute: Callable[[], Tensors], *parts: str | bytes | int) -> Tensors:
        assert self.cache is not None
        return self.cache.get(content_key(kind, identity, *parts), compute)

    @cached_property
    def _text_identity(self) -> str:
        modules = {name: getattr(self.pipe, name) for name in self.text_encoders}
        settings = {name: _settings(module.config.to_dict()) for name, module in modules.items()}
        tokenizers = {name: _vocabulary(getattr(self.pipe, name)) for name in self.tokenizers}
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
    template = getattr(tokenizer, "chat_template", None)
    return {"length": tokenizer.model_max_length, "template": template, **state, "padding": None, "truncation": None}
