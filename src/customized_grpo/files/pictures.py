"""Pictures for people: rows of reference and results with the prompt underneath."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from customized_grpo.files.durable import replacing

GAP = 6  # pixels between pictures
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 30), (110, 110, 110)


@dataclass(frozen=True)
class Shown:
    """A case, the picture that was made for it, and what each metric says of that (NaN: could not be scored)."""

    sample: str
    subject: str
    prompt: str
    reference: Image.Image
    picture: Image.Image
    scores: Mapping[str, float]


def enlarge(picture: Image.Image, side: int) -> Image.Image:
    """Fit into a square: small pixel art by whole factors without smoothing, photographs with it."""
    factor = side // max(picture.size)
    if factor >= 2:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    fitted = picture.copy()
    fitted.thumbnail((side, side), Image.Resampling.LANCZOS)
    return fitted


def case(pictures: Sequence[Image.Image], prompt: str, titles: Sequence[str], side: int = 128) -> Image.Image:
    """One case: pictures side by side, a title over each, the prompt underneath."""
    font, small = ImageFont.load_default(13), ImageFont.load_default(11)
    width = len(pictures) * (side + GAP) - GAP
    lines = textwrap.wrap(prompt, width=max(width // 7, 12))[:3]
    card = Image.new("RGB", (width, 18 + side + 4 + 16 * 3), PAPER)
    draw = ImageDraw.Draw(card)
    for column, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, shown = column * (side + GAP), enlarge(picture, side)
        draw.text((x, 1), title, fill=FAINT, font=small)
        card.paste(shown, (x + (side - shown.width) // 2, 18 + (side - shown.height) // 2))
    for number, line in enumerate(lines):
        draw.text((0, 18 + side + 4 + 16 * number), line, fill=INK, font=font)
    return card


def sheet(cards: Sequence[Image.Image], columns: int) -> Image.Image:
    """Cards of one size on a page, in reading order."""
    width, height = cards[0].size
    margin = 3 * GAP
    rows = -(-len(cards) // columns)
    page = Image.new("RGB", (margin + columns * (width + margin), margin + rows * (height + margin)), PAPER)
    for index, card in enumerate(cards):
        row, column = divmod(index, columns)
        page.paste(card, (margin + column * (width + margin), margin + row * (height + margin)))
    return page


def save_png(picture: Image.Image, path: Path) -> None:
    """Replace the file `path` with this picture, as PNG. Raises SavingError."""
    with replacing(path) as aside:
        picture.save(aside, format="PNG")
