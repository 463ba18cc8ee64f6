"""Generated tensors as the pictures that a user would save, and the part of a picture that is compared."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import Literal

from PIL import Image

from customized_grpo.data.images import Source, load_image
from customized_grpo.errors import UsageError

Region = Literal["frame", "centre"]

CENTRE = 0.7  # share of the shorter side: half the area of the largest square
GREY = (128, 128, 128)
SUBJECT = 128  # grey value from which a mask means the subject


def centre(picture: Image.Image) -> Image.Image:
    """The middle square, its side `CENTRE` of the shorter side, at least one pixel."""
    side = max(1, round(CENTRE * min(picture.size)))
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def subject(picture: Image.Image, mask: Image.Image) -> Image.Image | None:
    """The box around a mask's subject, everything else in it grey; None where the mask is empty.

    A mask of another size but the picture's proportions is resized. Raises ValueError for other proportions.
    """
    if mask.size != picture.size:
        if abs(mask.width * picture.height - picture.width * mask.height) > 0.01 * picture.width * mask.height:
            here, there = (f"{image.width} x {image.height}" for image in (mask, picture))
            raise UsageError(f"a mask of {here} does not fit its picture of {there}; give one of the same proportions")
        mask = mask.resize(picture.size, Image.Resampling.NEAREST)
    inside = mask.point([255 if value >= SUBJECT else 0 for value in range(256)])
    box = inside.getbbox()
    if box is None:
        return None
    return Image.composite(picture, Image.new("RGB", picture.size, GREY), inside).crop(box)


def identify(source: Source) -> Hashable:
    """What tells a picture from others: its place, or, of one in memory, its pixels."""
    if not isinstance(source, Image.Image):
        return source
    picture = load_image(source)
    return picture.size, hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
