"""Generated tensors as the pictures that a user would save."""

from __future__ import annotations

from PIL import Image
from torch import Tensor


def to_pictures(images: Tensor) -> list[Image.Image]:
    """[N, 3, H, W] in [0, 1] -> PIL, rounded to 8 bits: rewards see what a PNG file holds."""
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]
