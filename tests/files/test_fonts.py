"""Text in pictures: every script that a font of the machine has, and never a box."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw

from customized_grpo.files import fonts
from customized_grpo.files.fonts import draw_line, wrap
from customized_grpo.files.pictures import draw_card

DOG = "犬"


@pytest.fixture(autouse=True)
def only_these_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The system has no fonts, or one with a single character, drawn as a bar of 8 x 10 of 16 units."""

    def forget() -> None:
        for cached in (fonts._files, fonts._find, fonts._warn, fonts._characters):
            cached.cache_clear()

    def install(character: str) -> None:
        builder = FontBuilder(16, isTTF=True)
        builder.setupGlyphOrder([".notdef", "bar"])
        builder.setupCharacterMap({ord(character): "bar"})
        pen, empty = TTGlyphPen(None), TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((0, 10), (8, 10), (8, 0)):
            pen.lineTo(corner)
        pen.closePath()
        builder.setupGlyf({".notdef": empty.glyph(), "bar": pen.glyph()})
        builder.setupHorizontalMetrics({".notdef": (16, 0), "bar": (16, 0)})
        builder.setupHorizontalHeader(ascent=14, descent=-2)
        builder.setupPost()
        builder.save(tmp_path / "bar.ttf")
        (tmp_path / "damaged.ttf").write_bytes(b"no font")
        files = [str(tmp_path / name) for name in ("damaged.ttf", "bar.ttf")]
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
        forget()

    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    forget()
    return install


def drawn(text: str, size: int = 16) -> np.ndarray:
    """Dark pixels of a line, in the columns that it needs."""
    picture = Image.new("L", (400, 24), 255)
    draw_line(ImageDraw.Draw(picture), (0, 0), text, size, (0,))
    return np.asarray(picture) < 128


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "text", ["a dog, naïve", "собака на пляже", "σκύλος στο χιόνι", "كلب في الثلج", "שלום", "❤ →"]
)
def test_these_scripts_need_no_font_of_the_system(text: str):
    pieces = [drawn(character) for character in text.replace(" ", "")]
    assert all(piece.any() for piece in pieces)
    assert "\\u" not in "".join(piece for _, piece in fonts._runs(text))


def test_a_font_of_the_system_is_used_and_damaged_ones_are_passed_over(only_these_fonts: Callable[[str], None]):
    only_these_fonts(DOG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bar = drawn(DOG)
    rows, columns = np.nonzero(bar)
    assert (bar.sum(), np.ptp(rows) + 1, np.ptp(columns) + 1) == (80, 10, 8)
    assert drawn(f"a {DOG}").sum() == 80 + drawn("a").sum()


def test_without_a_font_the_escape_is_drawn_and_one_warning_says_so():
    blank = Image.new("RGB", (8, 8))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawings = [
            drawn(f"{DOG} dog 開"),
            drawn("𠀀"),
            np.asarray(draw_card([Image.new("RGB", (8, 8))], DOG, ["生"])),
        ]
    (warning,) = caught
    assert "no font on this machine has some characters of these prompts" in str(warning.message)
    card = draw_card([blank], "\\u72ac", ["\\u751f"])
    for found, escaped in zip(drawings, [drawn("\\u72ac dog \\u958b"), drawn("\\U00020000"), card], strict=True):
        assert np.array_equal(found, np.asarray(escaped))


@pytest.mark.filterwarnings("error")
def test_joiners_and_selectors_are_not_drawn():
    assert np.array_equal(drawn("dog\u200d\ufe0f"), drawn("dog"))


def test_a_text_that_runs_from_right_to_left_is_one_piece():
    assert [piece for _, piece in fonts._runs("كلب في الثلج")] == ["كلب في الثلج"]


def width_of(text: str) -> float:
    return fonts._length(text, 13)


@pytest.mark.parametrize("text", ["a dog in the snow, on a beach and in a box " * 3, "x" * 300, DOG * 90], ids=len)
def test_lines_fit_and_what_is_left_out_is_marked(text: str, only_these_fonts: Callable[[str], None]):
    only_these_fonts(DOG)
    lines = wrap(text, 13, 200, 3)
    assert len(lines) == 3
    assert all(width_of(line) <= 200 for line in lines)
    assert all(width_of(line) > 130 for line in lines)
    assert lines[-1].endswith("…")
    assert text.replace(" ", "").startswith("".join(lines).replace(" ", "").removesuffix("…"))


def test_a_short_text_is_whole_and_line_ends_are_blanks():
    assert wrap("a dog\u2028in\n the  snow", 13, 500, 3) == ["a dog in the snow"]
    assert wrap("", 13, 100, 3) == [""]
