"""Pictures for people: rows of reference and results with the prompt underneath."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from customized_grpo.files.durable import replacing
from customized_grpo.files.fonts import draw_line, wrap

GAP = 6  # pixels between pictures
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 30), (110, 110, 110)
TITLE_HEIGHT, LINE_HEIGHT, PROMPT_LINES = 18, 16, 3  # pixels, pixels, lines


@dataclass(frozen=True)
class Shown:
    """A case, the picture generated for it, and that picture's scores (NaN: could not be scored)."""

    sample: str
    subject: str
    prompt: str
    reference: Image.Image
    picture: Image.Image
    scores: Mapping[str, float]


def enlarge(picture: Image.Image, side: int) -> Image.Image:
    """Fit into a square: pixel art is enlarged by a whole factor without smoothing, photographs are resampled."""
    factor = side // max(picture.size)
    if factor >= 2:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    fitted = picture.copy()
    fitted.thumbnail((side, side), Image.Resampling.LANCZOS)
    return fitted


def draw_card(pictures: Sequence[Image.Image], prompt: str, titles: Sequence[str], side: int = 128) -> Image.Image:
    """One case: pictures side by side, a title above each, the prompt underneath."""
    width = len(pictures) * (side + GAP) - GAP
    text_top = TITLE_HEIGHT + side + 4
    card = Image.new("RGB", (width, text_top + LINE_HEIGHT * PROMPT_LINES), PAPER)
    draw = ImageDraw.Draw(card)
    for column, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, fitted = column * (side + GAP), enlarge(picture, side)
        draw_line(draw, (x, 1), title, 11, FAINT)
        card.paste(fitted, (x + (side - fitted.width) // 2, TITLE_HEIGHT + (side - fitted.height) // 2))
    for number, line in enumerate(wrap(prompt, 13, width, PROMPT_LINES)):
        draw_line(draw, (0, text_top + LINE_HEIGHT * number), line, 13, INK)
    return card


def draw_sheet(cards: Sequence[Image.Image], columns: int) -> Image.Image:
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
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")
