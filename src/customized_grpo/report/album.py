"""Pictures inside the page, as data URIs: pixel art unchanged, photographs shrunk to fit the page's budget."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from customized_grpo.data.images import load_image

BUDGET = 13_000_000  # bytes of all pictures, before base64 adds a third
LARGEST = 40_000  # bytes of one picture, however few there are
PIXEL_ART = 64  # pixels: up to this side a picture is kept unchanged and enlarged without smoothing
FITTED = ((384, 82), (320, 75), (256, 70), (192, 65), (160, 50), (128, 40), (96, 30))  # side, WebP quality


@dataclass(frozen=True)
class Thumbnail:
    uri: str
    width: int
    height: int

    @property
    def pixel_art(self) -> bool:
        return max(self.width, self.height) <= PIXEL_ART


class Album:
    """Thumbnails by file; `files` are all files that the page will show.

    Equal pictures are encoded once: evaluations that are compared have the same references.
    """

    def __init__(self, files: Iterable[Path]):
        self.share = min(LARGEST, BUDGET // max(len(set(files)), 1))
        self._of_file: dict[Path, Thumbnail] = {}
        self._of_pixels: dict[tuple[tuple[int, int], bytes], Thumbnail] = {}

    def __getitem__(self, file: Path) -> Thumbnail:
        """Raises PictureError if the file is not a picture."""
        if file not in self._of_file:
            picture = load_image(file)
            pixels = (picture.size, hashlib.sha256(picture.tobytes()).digest())
            if pixels not in self._of_pixels:
                self._of_pixels[pixels] = thumbnail(picture, self.share)
            self._of_file[file] = self._of_pixels[pixels]
        return self._of_file[file]


def thumbnail(picture: Image.Image, share: int, fitted: Sequence[tuple[int, int]] = FITTED) -> Thumbnail:
    """Encode a picture in about `share` bytes at most; pixel art without loss, however many bytes it takes.

    fitted  sides in pixels and WebP qualities to try in turn; the last one is taken if none is small enough
    """
    if max(picture.size) <= PIXEL_ART:
        return _thumbnail(picture, "png", _encoded(picture, format="PNG", optimize=True))
    small, data = picture, b""
    for side, quality in fitted:
        small = picture.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        data = _encoded(small, format="WEBP", quality=quality, method=4)
        if len(data) <= share:
            break
    return _thumbnail(small, "webp", data)


def _encoded(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


def _thumbnail(picture: Image.Image, kind: str, data: bytes) -> Thumbnail:
    return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *picture.size)
