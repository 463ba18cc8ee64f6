import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customized_grpo.data.images import PictureError, check_image, fit, load_image, load_mask

# Upright, 3 x 2:   red   green blue
#                   white black yellow
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
WHITE, BLACK, YELLOW = (255, 255, 255), (0, 0, 0), (255, 255, 0)
UPRIGHT = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, YELLOW]], dtype=np.uint8)

# How a camera stores the upright picture under each EXIF orientation.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],  # mirrored left to right
    3: UPRIGHT[::-1, ::-1],  # turned by 180 degrees
    4: UPRIGHT[::-1],  # mirrored top to bottom
    5: UPRIGHT.transpose(1, 0, 2),  # along the main diagonal
    6: np.rot90(UPRIGHT, 1),  # a quarter turn anticlockwise, to be turned clockwise
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),  # along the other diagonal
    8: np.rot90(UPRIGHT, -1),
}


def with_orientation(pixels: np.ndarray, orientation: int, file: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, exif=exif)
    return file


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return tuple(int(value) for value in np.asarray(image)[y, x])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_exif_orientation_is_applied_once(orientation: int, ending: str, tmp_path: Path):
    image = load_image(with_orientation(STORED[orientation], orientation, tmp_path / f"photo.{ending}"))
    np.testing.assert_array_equal(np.asarray(image), UPRIGHT)
    np.testing.assert_array_equal(np.asarray(load_image(image)), UPRIGHT)


def test_exif_orientation_of_a_jpeg(tmp_path: Path):
    blocks = np.repeat(np.repeat(STORED[6], 16, axis=0), 16, axis=1)  # JPEG keeps the colour of whole blocks
    image = load_image(with_orientation(blocks, 6, tmp_path / "photo.jpg"))
    assert image.size == (48, 32)
    expected = np.repeat(np.repeat(UPRIGHT, 16, axis=0), 16, axis=1)[8::16, 8::16]
    np.testing.assert_allclose(np.asarray(image)[8::16, 8::16], expected, atol=16)


NOT_WRITABLE = struct.pack("<HHII", 0x100, 9, 1, 0xFFFFFFFB)  # the width as a signed number, -5
ORIENTATION_6 = struct.pack("<HHII", 0x112, 3, 1, 6)


@pytest.mark.parametrize(
    ("exif", "size"),
    [
        (b"Exif\0\0II*\0\x08\0\0\0\x02\0" + NOT_WRITABLE + ORIENTATION_6 + bytes(4), (32, 48)),
        (b"Exif\0\0II*\0\x08\0\0\0\x01\0" + ORIENTATION_6[:5], (48, 32)),  # cut short
        (b"Exif\0\0nothing of the kind", (48, 32)),
    ],
)
def test_exif_that_cannot_be_read_or_written_again_spoils_no_picture(exif: bytes, size: tuple, tmp_path: Path):
    Image.fromarray(UPRIGHT).resize((48, 32)).save(tmp_path / "photo.jpg", exif=exif)
    with warnings.catch_warnings(action="ignore"):  # Pillow's
        assert check_image(tmp_path / "photo.jpg").size == load_image(tmp_path / "photo.jpg").size == size
        assert load_image(load_image(tmp_path / "photo.jpg")).size == size


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_check_knows_how_a_picture_is_turned(orientation: int, ending: str, tmp_path: Path):
    checked = check_image(with_orientation(UPRIGHT, orientation, tmp_path / f"photo.{ending}"))
    assert (checked.turned, checked.stored) == (orientation != 1, (3, 2))
    assert checked.size == ((2, 3) if orientation == 6 else (3, 2))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


LARGE = zlib.compress(bytes(3_000_000))
TEXTS = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + LARGE),
    "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LARGE),
    "iCCP": chunk(b"iCCP", b"colours\0\0" + LARGE),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("late", [False, True])
def test_a_png_with_a_text_of_megabytes_is_used(kind: str, late: bool, tmp_path: Path):
    """Before and after the pixels. Its orientation may stand in a text too."""
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    xmp = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    at = len(content) - 12 if late else 8 + 25  # before IEND, or after IHDR
    (tmp_path / "a.png").write_bytes(content[:at] + TEXTS[kind] + xmp + content[at:])
    assert check_image(tmp_path / "a.png").size == load_image(tmp_path / "a.png").size == (2, 3)


def test_a_png_with_half_its_pixels_is_found_although_every_checksum_is_right(tmp_path: Path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", content, at)
    half = chunk(b"IDAT", content[at + 8 : at + 8 + length // 2])
    (tmp_path / "a.png").write_bytes(content[:at] + half + content[at + 12 + length :])
    with pytest.raises(PictureError, match=r"a\.png: cannot be read \(image file is truncated"):
        check_image(tmp_path / "a.png")


def test_a_name_composed_of_other_characters_is_found(tmp_path: Path):
    Image.fromarray(UPRIGHT).save(tmp_path / "cafe\u0301.png")
    assert load_image(tmp_path / "caf\xe9.png").size == check_image(tmp_path / "caf\xe9.png").size == (3, 2)


def test_a_name_that_is_not_utf8_is_shown_and_refused():
    with pytest.raises(PictureError, match=r"^'photos/stra\\udce1e\.jpg': this name is not UTF-8; give the file or"):
        check_image(Path("photos/stra\udce1e.jpg"))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),  # .2 red + .8 white: 0 + .8 * 255 = 204
        ("LA", (0, 51), (204, 204, 204)),
        ("LA", (77, 255), (77, 77, 77)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, WHITE),
        ("1", 0, BLACK),
        ("RGB", YELLOW, YELLOW),
        ("I;16", 65535, WHITE),
        ("I;16", 32768, (128, 128, 128)),  # 32768 / 257 = 127.502
        ("I;16", 128, BLACK),  # .498, and the next value rounds up
        ("I;16", 129, (1, 1, 1)),
        ("I", 65535, WHITE),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: int | tuple[int, ...], expected: tuple, tmp_path: Path):
    image = Image.new(mode, (2, 1), colour)
    assert pixel(load_image(image)) == expected
    assert image.mode == mode
    file = tmp_path / "image.png"
    Image.new("I;16" if mode == "I" else mode, (2, 1), colour).save(file)
    assert pixel(load_image(file)) == expected


def test_palette_transparency_is_white(tmp_path: Path):
    image = Image.new("P", (2, 1), 1)
    image.putpalette([*RED, *BLUE])
    image.putpixel((0, 0), 0)
    for ending in ("png", "gif"):
        image.save(tmp_path / f"image.{ending}", transparency=0)
        loaded = load_image(tmp_path / f"image.{ending}")
        assert [pixel(loaded, x) for x in (0, 1)] == [WHITE, BLUE]
        image.save(tmp_path / f"opaque.{ending}")
        assert pixel(load_image(tmp_path / f"opaque.{ending}")) == RED


@pytest.mark.parametrize(("mode", "black", "key"), [("RGB", BLACK, BLACK), ("L", 0, 0), ("I;16", 0, 0)])
def test_transparent_colour_of_a_png_is_white(mode: str, black, key, tmp_path: Path):
    Image.new(mode, (1, 1), black).save(tmp_path / "image.png", transparency=key)
    assert pixel(load_image(tmp_path / "image.png")) == WHITE


@pytest.mark.parametrize(
    ("cmyk", "expected"),
    [
        ((0, 0, 0, 0), WHITE),
        ((0, 0, 0, 255), BLACK),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 255, 0), RED),
    ],
)
@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_cmyk(cmyk: tuple, expected: tuple, ending: str, tmp_path: Path):
    Image.new("CMYK", (16, 16), cmyk).save(tmp_path / f"print.{ending}")
    np.testing.assert_allclose(pixel(load_image(tmp_path / f"print.{ending}"), 8, 8), expected, atol=2)


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_first_frame_of_an_animation(ending: str, tmp_path: Path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / f"moving.{ending}", save_all=True, append_images=frames[1:], lossless=True)
    assert pixel(load_image(tmp_path / f"moving.{ending}")) == RED


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (4001, 3)])
def test_any_size(size: tuple[int, int], tmp_path: Path):
    Image.new("RGB", size, BLUE).save(tmp_path / "image.png")
    assert load_image(tmp_path / "image.png").size == size


def test_a_picture_in_memory_is_copied():
    image = Image.new("RGB", (2, 2), RED)
    load_image(image).putpixel((0, 0), BLUE)
    assert pixel(image) == RED


def encoded(ending: str, **options) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, ending, **options)
    return file.getvalue()


@pytest.mark.parametrize("ending", ["jpeg", "png", "webp", "tiff", "bmp", "gif"])
def test_truncated_files_are_found_when_checked_and_when_loaded(ending: str, tmp_path: Path):
    content = encoded(ending)
    complete, half = tmp_path / "complete", tmp_path / "half"
    complete.write_bytes(content)
    half.write_bytes(content[: len(content) // 2])
    check_image(complete)
    assert load_image(complete).size == (64, 48)
    for read in (check_image, load_image, load_mask):
        with pytest.raises(PictureError, match=r"half: .*; save it .*leave it out$") as caught:
            read(half)
        assert "\n" not in str(caught.value)


def test_corrupt_bytes_never_raise_anything_else(tmp_path: Path):
    rng = np.random.default_rng(1)
    file = tmp_path / "image"
    messages = []
    for ending in ("jpeg", "png", "webp", "bmp", "ppm"):
        content = np.frombuffer(encoded(ending), dtype=np.uint8)
        for _ in range(40):
            broken = content.copy()
            broken[rng.integers(0, min(100, len(broken)), 3)] = rng.integers(0, 256, 3)
            file.write_bytes(broken.tobytes())
            for read in (check_image, load_image):
                try:
                    with warnings.catch_warnings(action="ignore"):  # Pillow's, on broken metadata
                        read(file)
                except PictureError as error:
                    messages.append(str(error))
    assert len(messages) > 50
    assert all(message.startswith(f"{file}: ") for message in messages)


@pytest.mark.parametrize("content", [b"", b"just text", b"<html></html>", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_not_pictures(content: bytes, tmp_path: Path):
    (tmp_path / "page.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.png: not a picture that Pillow can read; save it as PNG"):
        load_image(tmp_path / "page.png")


def test_paths_that_cannot_be_opened(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none\.png: no such file or directory; check the path$"):
        load_image(tmp_path / "none.png")
    with pytest.raises(PictureError, match=r": is a directory; check the path$"):
        load_image(tmp_path)
    with pytest.raises(PictureError, match=r"^x{100}…x{96}\.png: file name too long; check the path$"):
        load_image("x" * 5000 + ".png")
    with pytest.raises(PictureError, match=r"^'a\\x00\\n\.png': cannot be read \(embedded null byte\); "):
        load_image("a\0\n.png")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("1", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4999)  # Pillow raises above twice that
    for read in (load_image, check_image):
        with pytest.raises(ValueError, match=r"bomb\.png: too many pixels .*; make it smaller$"):
            read(tmp_path / "bomb.png")


def test_pixels_without_a_scale_are_refused(tmp_path: Path):
    Image.new("F", (2, 2), 0.5).save(tmp_path / "float.tif")
    for read in (load_image, check_image):
        with pytest.raises(ValueError, match=r"float\.tif: .*0\.5 to 0\.5 \(mode F\); 16 bits hold"):
            read(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"picture in memory: .*70000 to 70000 \(mode I\)"):
        load_image(Image.new("I", (2, 2), 70000))


def test_pictures_of_which_nothing_would_show_are_refused(tmp_path: Path):
    colours = Image.effect_noise((8, 8), 60).convert("RGB")
    clear = colours.convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    palette = colours.convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes(256))
    dark = Image.fromarray(np.asarray(colours.convert("L")).astype(np.uint16))
    dark.save(tmp_path / "dark.png")
    for name, why in (("clear", "transparent"), ("palette", "transparent"), ("dark", "8-bit values, 2.. at most")):
        told = rf"{name}\.png: cannot be read \(.*{why}.*; save it again as 8-bit"
        with pytest.raises(PictureError, match=told):
            check_image(tmp_path / f"{name}.png")
    clear.putpixel((0, 0), (1, 2, 3, 255))
    assert check_image(clear).size == (8, 8)


def test_mask_is_grey_or_what_a_cut_out_keeps(tmp_path: Path):
    cut_out = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    cut_out.putpixel((1, 0), (9, 9, 9, 255))
    assert np.asarray(load_mask(cut_out)).tolist() == [[0, 255]]
    grey = Image.new("L", (2, 1), 0)
    grey.putpixel((1, 0), 255)
    assert np.asarray(load_mask(grey)).tolist() == [[0, 255]]
    assert np.asarray(load_mask(grey.convert("RGBA"))).tolist() == [[0, 255]]  # opaque: its colours are the mask
    turned = with_orientation(np.array([[0, 0, 255]], dtype=np.uint8), 3, tmp_path / "mask.png")
    assert np.asarray(load_mask(turned)).tolist() == [[255, 0, 0]]
    turned = with_orientation(np.asarray(cut_out), 3, tmp_path / "cut_out.png")
    assert np.asarray(load_mask(turned)).tolist() == [[255, 0]]


def test_fit_is_a_no_op_at_the_right_size():
    image = Image.fromarray(UPRIGHT)
    assert fit(image, 3, 2) is image


def test_fit_crops_the_centre():
    # columns red x2, green x4, blue x2; a square from 8 x 4 is the green middle
    row = [RED] * 2 + [GREEN] * 4 + [BLUE] * 2
    wide = Image.fromarray(np.array([row] * 4, dtype=np.uint8))
    assert fit(wide, 4, 4).getcolors() == [(16, GREEN)]
    assert fit(wide.rotate(90, expand=True), 4, 4).getcolors() == [(16, GREEN)]
    # shrunk from 80 x 40 it is the same crop, where Lanczos lets the edge ring
    shrunk = np.asarray(fit(wide.resize((80, 40), Image.Resampling.NEAREST), 4, 4)).astype(int)
    np.testing.assert_allclose(shrunk[:, 1:3], np.broadcast_to(GREEN, (4, 2, 3)), atol=30)
    assert (shrunk[..., 1] > 120).all()


@pytest.mark.parametrize("size", [(7, 5), (3, 11), (64, 64), (1, 1)])
def test_fit_has_the_exact_size_and_keeps_a_plain_colour(size: tuple[int, int]):
    image = fit(Image.new("RGB", (37, 23), (10, 200, 30)), *size)
    assert image.size == size
    assert image.getcolors() == [(size[0] * size[1], (10, 200, 30))]


def test_fit_averages_when_it_shrinks():
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32)))
    assert np.abs(np.asarray(fit(stripes, 8, 8)).astype(int) - 127).max() <= 12  # no aliasing


def test_fit_refuses_empty_sizes_and_palettes():
    with pytest.raises(ValueError, match="0 x 4; both sides must be at least 1"):
        fit(Image.new("RGB", (2, 2)), 0, 4)
    with pytest.raises(ValueError, match="mode P; open it with load_image"):
        fit(Image.new("P", (2, 2)), 4, 4)
