"""Pictures as every model and reward sees them: upright, RGB, eight bits, nothing transparent.

Colour profiles are not applied: pixel values are taken as sRGB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from customized_grpo.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


class PictureError(InputError, ValueError):
    """A file that is missing, truncated, or no picture; one line with the reason."""


class Stored(Protocol):
    """A picture inside another file, such as a table: opened at each call, never kept. `str` says where it lies."""

    def __hash__(self) -> int: ...

    def open_image(self) -> Image.Image: ...


Source = Image.Image | Path | Stored

_WIDE_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def load_image(source: Source | str) -> Image.Image:
    """A new RGB picture: upright by its EXIF, transparency on white, 16-bit grey scaled to 8, first frame.

    A picture in memory is converted the same way and left untouched.

    Raises:
        ValueError: the file is missing, truncated, corrupt or no picture; its pixels have no fixed scale.
    """
    with _opened(source) as image:
        return _rgb(image)


def load_mask(source: Source | str) -> Image.Image:
    """A mask as an upright 8-bit grey picture, the subject white; of a cut-out, what is opaque.

    Raises:
        ValueError: as for `load_image`.
    """
    with _opened(source) as image:
        if image.has_transparency_data:
            alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
            if alpha.getextrema() != (255, 255):
                return alpha
        return _rgb(image).convert("L")


def check_image(source: Source) -> None:
    """Passes over a picture that `load_image` can read, at a fraction of its cost for JPEG and PNG files.

    Raises:
        ValueError: as for `load_image`.
    """
    with _opened(source) as image:
        if image.format in ("JPEG", "MPO"):
            image.draft("L", (1, 1))  # decodes every byte at an eighth of the size
            image.load()
        elif image.format == "PNG":
            image.verify()  # checksums instead of pixels
        else:
            _rgb(image)


def pictures_in(folder: Path) -> list[Path]:
    """All that lies in a folder, by name, but hidden files: not by ending, so nothing is passed over in silence."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def inside(name: PurePath, root: Path) -> Path | None:
    """The file of a listed path under `root`, without "..", or None where it leads out of it.

    Paths are compared as they are written. A link inside `root` is followed wherever it points: it was put there by
    whoever owns the folder, not by whoever wrote the list.
    """
    file = Path(os.path.normpath(root / name))
    here, there = (Path(os.path.abspath(each)) for each in (root, file))  # noqa: PTH100 - resolve() follows links
    return file if there.is_relative_to(here) else None


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """The centre of an RGB or grey picture, resized to width x height; itself if that is its size.

    Raises:
        ValueError: a side below 1, or a mode that cannot be resampled.
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
    """0..65535 to 0..255, rounded; Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        span = f"{values.min():g} to {values.max():g}"
        raise ValueError(f"grey values from {span} (mode {image.mode}), where 16 bits hold 0 to 65535")
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
    """The picture; whatever goes wrong with it inside the block becomes one line: which, why, what to do."""
    name = "picture in memory" if isinstance(source, Image.Image) else source
    try:
        with _context(source) as image:
            yield image
    # A bad file makes decoders raise OSError, SyntaxError, ValueError, RuntimeError, struct.error and others.
    except Exception as error:
        raise PictureError(f"{name}: {_why(error)}") from error


def _context(source: Source | str) -> AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return nullcontext(source)
    return Image.open(source) if isinstance(source, str | Path) else source.open_image()


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()}; check the path"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow can read; save it as PNG or JPEG, or leave it out"
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than Pillow opens (its guard against decompression bombs); make it smaller"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"cannot be read ({reason}); save it again as 8-bit PNG or JPEG, or leave it out"
