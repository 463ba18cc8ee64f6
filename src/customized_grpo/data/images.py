"""Pictures as every model and reward sees them: upright, RGB, eight bits, no transparency.

Colour profiles are ignored: pixel values are taken as sRGB.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from customized_grpo.errors import InputError
from customized_grpo.files.paths import as_stored, display, why
from customized_grpo.files.text import is_utf8

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
Result = TypeVar("Result")

_THREADS = 8  # each holds one decoded picture

_WIDE_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")

# How a picture with this EXIF orientation is turned upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ACROSS = (5, 6, 7, 8)  # those that exchange width and height


def load_image(source: Source | str) -> Image.Image:
    """A new RGB picture: upright by its EXIF, transparency on white, 16-bit grey scaled to 8, first frame only.

    A picture in memory is converted in the same way and left unchanged.

    Raises:
        PictureError: the file is missing, truncated, corrupt or not a picture, or its pixels have no fixed scale.
    """
    with _opened(source) as image:
        return _rgb(_upright(image))


def load_mask(source: Source | str) -> Image.Image:
    """A mask as an upright 8-bit grey picture, the subject white. A cut-out gives its opaque part.

    Raises:
        PictureError: as for `load_image`.
    """
    with _opened(source) as image:
        upright = _upright(image)
        if upright.has_transparency_data:
            alpha = upright.convert("RGBA").getchannel("A")
            if alpha.getextrema() != (255, 255):
                return alpha
        return _rgb(upright).convert("L")


@dataclass(frozen=True)
class Checked:
    """What a check has found out about a picture.

    content  equal for equal pixels; if `reduced`, of an eighth of the size, where other pictures can be equal too
    """

    size: tuple[int, int]  # width and height, upright
    orientation: Any  # of its EXIF
    content: bytes
    reduced: bool = False

    @property
    def turned(self) -> bool:
        """Whether EXIF turns or mirrors the picture."""
        return self.orientation in _TURNS

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height as they are stored."""
        return _exchanged(self.size, self.orientation)


def check_image(source: Source) -> Checked:
    """Check that `load_image` can read a picture, for JPEG files at a fraction of its cost.

    Raises:
        PictureError: as for `load_image`; the name of the file is not UTF-8; or nothing of it would show, because all
            is transparent, or because 16-bit grey holds 8-bit values.
    """
    if isinstance(source, Path) and not is_utf8(str(source)):
        raise PictureError(f"{display(source)}: this name is not UTF-8; give the file or folder another one")
    with _opened(source) as image:
        if image.format in ("JPEG", "MPO"):
            size = image.size
            image.draft("L", (1, 1))  # decodes every byte at an eighth of the size
            image.load()
            orientation = _orientation(image)
            return Checked(_exchanged(size, orientation), orientation, _digest(image, f"{orientation}"), reduced=True)
        of_tiff = getattr(image, "tag_v2", {}).get(ExifTags.Base.Orientation)  # gone once Pillow has turned it
        image.load()
        upright = _upright(image)
        _check_visible(upright)
        picture = _rgb(upright)
        return Checked(picture.size, of_tiff or _orientation(image), _digest(picture))


def for_each(sources: Sequence[Source], read: Callable[[Source], Result]) -> Iterator[Result | PictureError]:
    """What `read` returns for each picture, or the PictureError that it raises, in order; files in several threads."""

    def attempt(source: Source) -> Result | PictureError:
        try:
            return read(source)
        except PictureError as error:
            return error

    if not all(isinstance(source, Path) for source in sources):  # tables are read row by row
        yield from map(attempt, sources)
        return
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        yield from pool.map(attempt, sources)


def content_of(source: Source) -> bytes:
    """`Checked.content` of a picture at its full size."""
    return _digest(load_image(source))


def _digest(image: Image.Image, more: str = "") -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16, key=f"{image.size} {more}".encode()).digest()


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


def _upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF turns it. `ImageOps.exif_transpose` also writes EXIF anew, which can fail."""
    image.load()
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever a decoder raises: EXIF that cannot be read says nothing about the pixels
        return None


def _exchanged(size: tuple[int, int], orientation: Any) -> tuple[int, int]:
    return (size[1], size[0]) if orientation in _ACROSS else size


def _check_visible(image: Image.Image) -> None:
    """Raises ValueError if nothing of a picture would show, although its file may hold one."""
    if image.mode in _WIDE_GREY and image.mode != "F" and 0 <= (highest := np.asarray(image).max()) <= 255:
        raise ValueError(f"16-bit grey with 8-bit values, {highest} at most, which would be black")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() == (0, 0):
        raise ValueError("all of it is transparent")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_GREY:
        image = _eight_bit_grey(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    rgb = image.convert("RGB")
    rgb.info = {}  # EXIF would turn it again
    return rgb


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
    return _open_file(Path(source)) if isinstance(source, str | Path) else source.open_image()


def _open_file(path: Path) -> Image.Image:
    path = as_stored(path)
    with path.open("rb") as file:
        head = file.read(len(_PNG))
        content = head + file.read() if head == _PNG else None
    return Image.open(path) if content is None else open_bytes(content)


def open_bytes(content: bytes) -> Image.Image:
    """A picture from the content of its file. Raises whatever the decoder raises."""
    return Image.open(BytesIO(_without_text(content) if content.startswith(_PNG) else content))


_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # texts and colour profile
_ORIENTED = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


def _without_text(png: bytes) -> bytes:
    """A PNG file without the chunks that Pillow refuses if they are large, such as a workflow of megabytes.

    Nothing here reads them. Those that may say how the picture is turned are kept.
    """
    kept, at = [png[: len(_PNG)]], len(_PNG)
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")  # length, kind, content, checksum
        if png[at + 4 : at + 8] not in _TEXT or png.startswith(_ORIENTED, at + 8):
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{why(error)}; check the path"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow can read; save it as PNG or JPEG, or leave it out"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels for Pillow (its guard against decompression bombs); make it smaller"
    return f"cannot be read ({why(error)}); save it again as 8-bit PNG or JPEG, or leave it out"
