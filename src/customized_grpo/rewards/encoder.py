"""Encoders from transformers, shared within a process, and the features of pictures, each computed once."""

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
from customized_grpo.rewards.regions import Region, centre

CACHED = 8192  # features of references: 25 MB for a ViT-B
LONGEST = 8  # times the shorter side: pictures that are longer are cut before a processor enlarges them

Kind = TypeVar("Kind", bound="PictureEncoder")
_SHARED: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()


def load_encoder(kind: Any, model: str | Path, device: torch.device, **settings: Any) -> Any:
    """A model of class `kind` on the device, in float32, without dropout or gradients.

    Typed as Any because transformers' annotations omit what its models take and return. Raises ModelError.
    """
    # By default transformers uses the file's dtype, and scores would depend on how the file was saved.
    return load_part(kind, model, dtype=torch.float32, **settings).to(device).eval().requires_grad_(False)


def load_processor(model: str | Path) -> Any:
    """The checkpoint's image processor, on Pillow: torchvision resizes slightly differently. Raises ModelError."""
    with loading(model):
        return AutoImageProcessor.from_pretrained(model, backend="pil")


def shared(kind: Callable[..., Kind], model: str | Path, device: torch.device, *more: Hashable) -> Kind:
    """The one `kind(model, device, *more)` of this process, freed together with the last reward that uses it.

    Raises ModelError, also if the image processor's pictures do not fit the model.
    """
    key = (kind, str(model), device, *more)
    encoder = _SHARED.get(key)
    if encoder is None:
        encoder = kind(model, device, *more)
        with loading(model):
            encoder([Image.new("RGB", (64, 64))])
        _SHARED[key] = encoder
    return encoder


class PictureEncoder(ABC):
    """Unit features [N, C] of pictures, float32 on the CPU; `processor` prepares the pictures."""

    processor: Any
    device: torch.device

    def __init__(self) -> None:
        self._cache: OrderedDict[Hashable, Tensor | None] = OrderedDict()
        self._latest = _ImageFeatures(None, None, {})

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings [n, C] of pixels [n, 3, H, W] on the device."""

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], batch: int = 64) -> Tensor:
        """Features [N, C] of N > 0 pictures, `batch` of them per forward pass."""
        parts = []
        for start in range(0, len(pictures), batch):
            middles = [self._middle(picture) for picture in pictures[start : start + batch]]
            pixels = self.processor(images=middles, return_tensors="pt")["pixel_values"]
            parts.append(F.normalize(self.embed(pixels.to(self.device)).float(), dim=-1).cpu())
        return torch.cat(parts)

    def _middle(self, picture: Image.Image) -> Image.Image:
        """What the processor keeps of a very long picture, with a wide margin.

        It would first enlarge the whole until the shorter side fits, 3,000 x 1 pixels to 768,000 x 256, and then cut
        out the middle.
        """
        cuts = getattr(self.processor, "do_center_crop", False) and self.processor.size.get("shortest_edge")
        short, long = sorted(picture.size)
        if not cuts or long <= LONGEST * short:
            return picture
        side = LONGEST * short + (long - LONGEST * short) % 2  # so that the middle stays where it is
        start = (long - side) // 2
        box = (start, 0, start + side, short) if picture.width == long else (0, start, short, start + side)
        return picture.crop(box)

    def image_features(self, images: Tensor, region: Region = "frame", batch: int = 64) -> Tensor:
        """Features [N, C] of generated images [N, 3, H, W] or of their centres.

        The features of the latest tensor are kept, so that several metrics of the same images cost one forward pass.
        """
        # Tensors of inference mode have no version counter, so writes to them would go unnoticed.
        version = None if images.is_inference() else images._version
        if self._latest.images is None or self._latest.images() is not images or self._latest.version != version:
            self._latest = _ImageFeatures(None if version is None else weakref.ref(images), version, {})
        by_region = self._latest.by_region
        if region not in by_region:
            pictures = to_pictures(images)
            by_region[region] = self([centre(p) for p in pictures] if region == "centre" else pictures, batch)
        return by_region[region]

    def cached(self, key: Hashable, picture: Callable[[], Image.Image | None]) -> Tensor | None:
        """Features [C] of the picture that `picture()` opens on the first call with this key; None if it opens none.

        The `CACHED` most recently used are kept. Each picture is encoded alone: in a batch, its last digits would
        depend on the other pictures, and a resumed run would not repeat the original.
        """
        if key not in self._cache:
            opened = picture()
            self._cache[key] = None if opened is None else self([opened])[0]
            if len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


class _ImageFeatures:
    """Features by region of one tensor of generated images, which is not kept alive."""

    def __init__(self, images: weakref.ref[Tensor] | None, version: int | None, by_region: dict[str, Tensor]):
        self.images, self.version, self.by_region = images, version, by_region
