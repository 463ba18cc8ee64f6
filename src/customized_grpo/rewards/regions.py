"""The part of a picture that is compared: its centre, or the subject that a mask shows."""

from __future__ import annotations

from typing import Literal

from PIL import Image

from customized_grpo.data.masks import SUBJECT, fits
from customized_grpo.errors import UsageError

Region = Literal["frame", "centre"]

CENTRE = 0.7  # share of the shorter side: half the area of the largest square
GREY = (128, 128, 128)


def centre(picture: Image.Image) -> Image.Image:
    """The middle square; its side is `CENTRE` of the shorter side, at least one pixel."""
    side = max(1, round(CENTRE * min(picture.size)))
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def subject(picture: Image.Image, mask: Image.Image) -> Image.Image | None:
    """The box around a mask's subject, grey outside the mask; None if the mask is empty.

    A mask of another size is resized. Raises UsageError if its proportions differ from the picture's.
    """
    if mask.size != picture.size:
        if not fits(mask.size, picture.size):
            mask_size, size = (f"{image.width} x {image.height}" for image in (mask, picture))
            raise UsageError(f"a mask of {mask_size} does not fit its picture of {size}; use the same proportions")
        mask = mask.resize(picture.size, Image.Resampling.NEAREST)
    inside = mask.point([255 if value >= SUBJECT else 0 for value in range(256)])
    box = inside.getbbox()
    if box is None:
        return None
    return Image.composite(picture, Image.new("RGB", picture.size, GREY), inside).crop(box)
