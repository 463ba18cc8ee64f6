"""Text in pictures, in whatever script it is: each character in the first font that has it.

Pillow's own font has Latin letters alone. The next one, which matplotlib brings, has Greek, Cyrillic, Arabic, Hebrew
and more; Chinese, Japanese, Korean and others need a font of the system. A character that no font has is shown as its
escape, such as \\u72ac, instead of a box.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import ImageDraw, ImageFont

CUT = "…"
# Scripts without spaces between words, Thai to Han: a line may end after any of their characters.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
Face = str | None  # a font file, or Pillow's own font


def draw_line(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: tuple[int, ...]) -> None:
    """Draw one line whose top left corner is `at`, in pixels; no character is left out."""
    x, baseline = float(at[0]), at[1] + _font(None, size).getmetrics()[0]
    for face, piece in _runs(text):
        draw.text((x, baseline), piece, fill=colour, font=_font(face, size), anchor="ls")
        x += _font(face, size).getlength(piece)


def wrap(text: str, size: int, width: int, lines: int) -> list[str]:
    """The text in at most `lines` lines of `width` pixels; what does not fit is left out, and ends in an ellipsis."""
    wrapped = [""]
    for part in _breakable(" ".join(text.split()), size, width):
        if len(wrapped) > lines:
            break
        if wrapped[-1] and _length(f"{wrapped[-1]}{part}".rstrip(), size) > width:
            wrapped[-1] = wrapped[-1].rstrip()
            wrapped.append("")
        wrapped[-1] += part
    if len(wrapped) > lines:
        last = wrapped[lines - 1]
        while last and _length(last + CUT, size) > width:
            last = last[:-1].rstrip()
        wrapped = [*wrapped[: lines - 1], last + CUT]
    return wrapped


def _breakable(text: str, size: int, width: int) -> Iterator[str]:
    """The text in pieces after which a line may end: words with their space, or single characters."""
    for word in re.findall(r"\S+ ?", text):
        if len(word) > width or _length(word, size) > width:
            yield from word
            continue
        start = 0
        for match in _WITHOUT_SPACES.finditer(word):
            yield word[start : match.end()]
            start = match.end()
        if start < len(word):
            yield word[start:]


def _length(text: str, size: int) -> float:
    return sum(_font(face, size).getlength(piece) for face, piece in _runs(text))


def _runs(text: str) -> list[tuple[Face, str]]:
    """The text in pieces of one font each."""
    if text.isascii():
        return [(None, text)]
    current: _Characters | None = None
    pieces: list[tuple[Face, str]] = []
    for character in unicodedata.normalize("NFC", text):
        joins = not character.isalnum() and current is not None and ord(character) in current.codes
        found = current if joins else _find(character)  # blanks do not divide a text that runs from right to left
        shown = _escape(character) if found is None else character
        face = None if found is None else found.face
        if pieces and pieces[-1][0] == face:
            pieces[-1] = (face, pieces[-1][1] + shown)
        else:
            pieces.append((face, shown))
        current = found
    return pieces


def _escape(character: str) -> str:
    """Marks and invisible characters (joiners, variation selectors) are left out."""
    if unicodedata.category(character) in ("Cf", "Mn", "Me"):
        return ""
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


@dataclass(frozen=True)
class _Characters:
    """What a font can draw."""

    face: Face
    codes: frozenset[int]


@cache
def _find(character: str) -> _Characters | None:
    """The first font that has a character; None, and a warning, if there is none."""
    known = next((known for known in _fonts() if ord(character) in known.codes), None)
    if known is None and _escape(character):
        _warn()
    return known


@cache  # once
def _warn() -> None:
    warnings.warn(
        "no font on this machine has some characters of these prompts, so pictures show their escapes; install a font "
        "for them, for instance Noto Sans CJK (logs and reports have the text itself)",
        stacklevel=2,
    )


def _fonts() -> Iterator[_Characters]:
    """Pillow's font, matplotlib's, then those of the system; each is opened only if no earlier one will do."""
    for face in (None, *_files()):
        if (known := _characters(face)) is not None:
            yield known


@cache
def _files() -> list[str]:
    import matplotlib as mpl
    from matplotlib import font_manager

    own = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return [str(own), *sorted(font_manager.findSystemFonts())]


@cache
def _characters(face: Face) -> _Characters | None:
    """None for a file that is damaged, or holds bitmaps only."""
    from matplotlib.ft2font import FT2Font

    try:
        content = _font(face, 13).path  # of Pillow's own font its content
        file = BytesIO(content.getvalue()) if isinstance(content, BytesIO) else face
        return _Characters(face, frozenset(FT2Font(file).get_charmap()))  # pyright: ignore[reportArgumentType]
    except (OSError, RuntimeError):
        return None


@cache
def _font(face: Face, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size) if face is None else ImageFont.truetype(face, size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # the default one is, in any given size
    return font
