"""Encoders of transformers: one of each in a process, and features of pictures that are computed once."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor

from customized_grpo.data.images import to_pictures
from customized_grpo.files.pretrained import load_part, loading
from customized_grpo.rewards.images import Region, centre

KEPT = 8192  # features of references that stay: 25 MB of a ViT-B

Kind = TypeVar("Kind", bound="PictureEncoder")
_SHARED: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()


def load_encoder(kind: Any, model: str | Path, device: torch.device, **settings: Any) -> Any:
    """A model of the class `kind`, on the device, in float32, without dropout and gradients.

    Any in and out: transformers' annotations leave out what its models take and return.
    """
    # Left to itself transformers takes the dtype of the file, and scores would depend on how it was saved.
    return load_part(kind, model, dtype=torch.float32, **settings).to(device).eval().requires_grad_(False)


def load_processor(model: str | Path) -> Any:
    """The checkpoint's image processor. By Pillow: with torchvision it would resize a little differently."""
    with loading(model):
        return AutoImageProcessor.from_pretrained(model, backend="pil")


def shared(kind: Callable[..., Kind], model: str | Path, device: torch.device, *more: Hashable) -> Kind:
    """The one `kind(model, device, *more)` of this process. It goes when the last reward that uses it goes."""
    key = (kind, str(model), device, *more)
    found = _SHARED.get(key)
    if found is None:
        _SHARED[key] = found = kind(model, device, *more)
    return found


class PictureEncoder(ABC):
    """Unit features [N, C] of pictures, in float32 on the CPU, prepared by `processor`."""

    processor: Any
    device: torch.device

    def __init__(self) -> None:
        self._references: OrderedDict[Hashable, Tensor | None] = OrderedDict()
        self._latest = _Generated(None, None, {})

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings [n, C] of pixels [n, 3, H, W] that lie on the device."""

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], batch: int = 64) -> Tensor:
        """Features [N, C] of N > 0 pictures; `batch` of them go through the encoder at a time."""
        parts = []
        for start in range(0, len(pictures), batch):
            pixels = self.processor(images=list(pictures[start : start + batch]), return_tensors="pt")["pixel_values"]
            parts.append(F.normalize(self.embed(pixels.to(self.device)).float(), dim=-1).cpu())
        return torch.cat(parts)

    def of_images(self, images: Tensor, region: Region = "frame", batch: int = 64) -> Tensor:
        """Features [N, C] of generated images [N, 3, H, W], or of their middles.

        Those of the latest tensor are kept, so that several metrics on the same images pay once.
        """
        # A tensor of inference mode counts no changes: nothing would show that it was written to.
        changes = None if images.is_inference() else images._version
        if self._latest.images is None or self._latest.images() is not images or self._latest.changes != changes:
            self._latest = _Generated(None if changes is None else weakref.ref(images), changes, {})
        found = self._latest.features
        if region not in found:
            pictures = to_pictures(images)
            found[region] = self([centre(p) for p in pictures] if region == "centre" else pictures, batch)
        return found[region]

    def once(self, key: Hashable, picture: Callable[[], Image.Image | None]) -> Tensor | None:
        """Features [C] of what `picture` opens, at the first call with this key; None where it opens nothing.

        The `KEPT` that were used last are kept. References go through the encoder one by one: their features must not
        differ in the last digit by what else was new at the time, or a run that is resumed would not repeat.
        """
        if key not in self._references:
            opened = picture()
            self._references[key] = None if opened is None else self([opened])[0]
            if len(self._references) > KEPT:
                self._references.popitem(last=False)
        self._references.move_to_end(key)
        return self._references[key]


class _Generated:
    """Features by region of one tensor of generated images, which is not kept alive."""

    def __init__(self, images: weakref.ref[Tensor] | None, changes: int | None, features: dict[str, Tensor]):
        self.images, self.changes, self.features = images, changes, features
