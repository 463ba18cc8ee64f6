import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customized_grpo.data import DataError, load_list

SIDE = (8, 6)


def photograph(file: Path, size: tuple[int, int] = SIDE, orientation: int = 1) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, exif=exif)


def mask(file: Path, values: Sequence[int] = (0, 255), size: tuple[int, int] = SIDE, mode: str = "L") -> None:
    """The left half has the first value, the right half the second one."""
    pixels = np.full(size[::-1], values[0], dtype=np.uint8)
    pixels[:, size[0] // 2 :] = values[1]
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture.putpalette([0, 0, 0, 128, 0, 0])  # class 1 in dark red
    picture.save(file)


def load(folder: Path) -> None:
    entry = {"prompt": "a dog", "image_path": "dog.png", "mask": "mask.png"}
    (folder / "list.jsonl").write_text(json.dumps(entry))
    load_list(folder / "list.jsonl")


@pytest.mark.parametrize(
    ("values", "mode", "highest"), [((0, 1), "L", 1), ((0, 1), "P", 38), ((0, 0), "L", 0), ((0, 127), "L", 127)]
)
def test_a_mask_without_a_subject(values: tuple[int, int], mode: str, highest: int, tmp_path: Path):
    photograph(tmp_path / "dog.png")
    mask(tmp_path / "mask.png", values, mode=mode)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert caught.value.problems == (
        f"list.jsonl, line 1: {tmp_path}/mask.png: this mask shows no subject: nothing in it is 128 or more (the "
        f"highest grey value of 255 is {highest}); 0 and 1 have to be 0 and 255, with 16 bits 0 and 65535",
    )


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_on_a_photograph_as_stored(orientation: int, ending: str, tmp_path: Path):
    photograph(tmp_path / "dog.png", orientation=orientation)
    photograph(tmp_path / f"photo.{ending}", orientation=orientation)
    (tmp_path / f"photo.{ending}").replace(tmp_path / "dog.png")  # what counts is the content
    mask(tmp_path / "mask.png")
    remedy = "its EXIF turns it (as stored: 8 x 6), and masks are drawn on the upright picture"
    with pytest.raises(
        DataError, match=re.escape(f"a mask of 8 x 6 does not fit {tmp_path}/dog.png of 6 x 8; {remedy}")
    ):
        load(tmp_path)
    mask(tmp_path / "mask.png", size=(12, 16))
    load(tmp_path)


def test_a_mask_of_other_proportions(tmp_path: Path):
    photograph(tmp_path / "dog.png")
    mask(tmp_path / "mask.png", size=(8, 8))
    with pytest.raises(
        DataError, match=r"line 1: .*mask\.png: a mask of 8 x 8 does not fit .* use the same proportions"
    ):
        load(tmp_path)


@pytest.mark.parametrize(("size", "orientation"), [((6, 6), 6), ((8, 6), 3), ((8, 6), 2)])
def test_a_mask_that_fits_a_turned_photograph_in_either_position(
    size: tuple[int, int], orientation: int, tmp_path: Path
):
    photograph(tmp_path / "dog.png", size, orientation)
    mask(tmp_path / "mask.png", size=size)
    with pytest.warns(UserWarning, match=r"turned by their EXIF.*on the upright picture\. The masks: .*mask\.png$"):
        load(tmp_path)


def test_a_mask_that_is_white_all_over(tmp_path: Path):
    photograph(tmp_path / "dog.png")
    mask(tmp_path / "mask.png", (255, 255))
    with pytest.warns(UserWarning, match=r"white all over, so that they show the whole picture .*: .*mask\.png$"):
        load(tmp_path)


def test_a_mask_and_its_picture_that_cannot_be_read(tmp_path: Path):
    for name in ("dog.png", "mask.png"):
        (tmp_path / name).write_text("no picture")
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        f"{tmp_path}/dog.png",
        f"{tmp_path}/mask.png",
    ]
