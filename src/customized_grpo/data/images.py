"""Pictures as every model and reward sees them: upright, RGB, eight bits, no transparency.

Colour profiles are ignored: pixel values are taken as sRGB.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from customized_grpo.errors import InputError
from customized_grpo.files.paths import display, why

if TYPE_CHECKING:
    from torch import Tensor


class PictureError(InputError, ValueError):
    """A picture that cannot be read: the file is missing, truncated or not a picture. One line with the reason."""


class Stored(Protocol):
    """A picture inside another file, such as a table: opened at each call, never cached. `str` is its location."""

    def __hash__(self) -> int: ...

    def open_image(self) -> Image.Image: ...

    def content(self) -> bytes:
        """What decides the picture, for a digest."""
        ...


Source = Image.Image | Path | Stored

_WIDE_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def load_image(source: Source | str) -> Image.Image:
    """A new RGB picture: upright by its EXIF, transparency on white, 16-bit grey scaled to 8, first frame only.

    A picture in memory is converted in the same way and left unchanged.

    Raises:
        PictureError: the file is missing, truncated, corrupt or not a picture, or its pixels have no fixed scale.
    """
    with _opened(source) as image:
        return _rgb(image)


def load_mask(source: Source | str) -> Image.Image:
    """A mask as an upright 8-bit grey picture, the subject white. A cut-out gives its opaque part.

    Raises:
        PictureError: as for `load_image`.
    """
    with _opened(source) as image:
        if image.has_transparency_data:
            alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
            if alpha.getextrema() != (255, 255):
                return alpha
        return _rgb(image).convert("L")


def check_image(source: Source) -> None:
    """Check that `load_image` can read a picture, at a fraction of its cost for JPEG and PNG files.

    Raises:
        PictureError: as for `load_image`.
    """
    with _opened(source) as image:
        if image.format in ("JPEG", "MPO"):
            image.draft("L", (1, 1))  # decodes every byte at an eighth of the size
            image.load()
        elif image.format == "PNG":
            image.verify()  # checksums instead of pixels
        else:
            _rgb(image)


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """The centre of an RGB or grey picture, resized to width x height; the picture itself if it has that size.

    Raises:
        ValueError: a side is below 1, or the mode cannot be resampled.
    """
    if width < 1 or height < 1:
        raise ValueError(f"cannot fit a picture to {width} x {height}; both sides must be at least 1 pixel")
    if image.mode not in ("RGB", "L"):
        raise ValueError(f"cannot fit a picture of mode {image.mode}; open it with load_image first")
    if image.size == (width, height):
        return image
    shrinks = max(width / image.width, height / image.height) < 1
    method = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    return ImageOps.fit(image, (width, height), method)


def _rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE_GREY:
        image = _eight_bit_grey(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _eight_bit_grey(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255, rounded; Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        span = f"{values.min():g} to {values.max():g}"
        raise ValueError(f"grey values from {span} (mode {image.mode}); 16 bits hold 0 to 65535")
    grey = (values.astype(np.int64) + 128) // 257  # 65535 = 255 * 257
    if (transparent := image.info.get("transparency")) is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey.astype(np.uint8))


def to_pictures(images: Tensor) -> list[Image.Image]:
    """[N, 3, H, W] in [0, 1] -> PIL, rounded to 8 bits: rewards see what a PNG file holds."""
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


@contextmanager
def _opened(source: Source | str) -> Iterator[Image.Image]:
    """The opened picture. Any error inside the block becomes one line: which picture, why, what to do."""
    name = "picture in memory" if isinstance(source, Image.Image) else display(source)
    try:
        with _open(source) as image:
            yield image
    # On a bad file, decoders raise OSError, SyntaxError, ValueError, RuntimeError, struct.error and many more.
    except Exception as error:
        raise PictureError(f"{name}: {_reason(error)}") from error


def _open(source: Source | str) -> AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return nullcontext(source)
    return Image.open(source) if isinstance(source, str | Path) else source.open_image()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{why(error)}; check the path"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow can read; save it as PNG or JPEG, or leave it out"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels for Pillow (its guard against decompression bombs); make it smaller"
    return f"cannot be read ({why(error)}); save it again as 8-bit PNG or JPEG, or leave it out"
