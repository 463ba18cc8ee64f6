import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customized_grpo.data import load_data, load_list
from customized_grpo.data.images import check_image

NOISE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def same_bytes(file: Path, copy: Path) -> None:
    shutil.copyfile(file, copy)


def same_pixels(file: Path, copy: Path) -> None:
    Image.open(file).save(copy.with_suffix(".bmp"))
    copy.with_suffix(".bmp").rename(copy)


def other_exif(file: Path, copy: Path) -> None:
    """A comment in front of the first segment of a JPEG; a PNG with other compression."""
    if file.suffix == ".jpg":
        content = file.read_bytes()
        copy.write_bytes(content[:2] + b"\xff\xfe\x00\x06note" + content[2:])
    else:
        Image.open(file).save(copy, compress_level=0)


@pytest.mark.filterwarnings("ignore:one subject alone")
@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("copied", [same_bytes, same_pixels, other_exif])
def test_a_copy_is_no_other_view(copied: Callable[[Path, Path], None], ending: str, tmp_path: Path):
    first, copy, other = (tmp_path / f"{name}.{ending}" for name in ("a", "a (1)", "b"))
    Image.fromarray(NOISE).save(first)
    copied(first, copy)
    Image.fromarray(NOISE[::-1]).save(other)
    with pytest.warns(UserWarning, match=r"is no other view of itself and is left out: .*/a \(1\)\.\w+ = .*/a\.\w+$"):
        train, validation = load_data(str(tmp_path), root=None, class_word="dog", held_out_share=0.1, seed=0)
    for sample in (*train, *validation):
        names = {path.name for path in sample.other_views if isinstance(path, Path)}
        expected = {copy.name, first.name} if sample.references == (other,) else {other.name}
        assert names == expected


def test_copies_that_a_list_names_are_warned_of_and_kept(draw: Callable[..., Path]):
    root = draw("a.png", "c.png", colour="red")
    draw("b.png")
    views = [["c.png"], ["a.png"], ["c.png", "b.png"]]
    entries = [{"prompt": "p", "image_path": "a.png", "other_views": names} for names in views]
    (root / "list.json").write_text(json.dumps(entries))
    shown = rf"{root}/a\.png = {root}/c\.png, {root}/a\.png; 2 of 3 samples have no other view that differs"
    with pytest.warns(UserWarning, match=rf"^the same picture is both reference and other view, .*: {shown}$"):
        samples = load_list(root / "list.json")
    assert [sample.other_views for sample in samples] == [tuple(root / name for name in names) for names in views]


def test_pictures_of_one_size_that_only_look_alike_when_reduced_are_different(tmp_path: Path):
    """Same grey, other colours: the check reads JPEG files in grey, at an eighth of the size."""
    for name, colour in (("a.jpg", (0, 100, 0)), ("b.jpg", (59, 59, 59))):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    assert check_image(tmp_path / "a.jpg") == check_image(tmp_path / "b.jpg")
    (tmp_path / "list.json").write_text(json.dumps([{"prompt": "p", "image_path": "a.jpg", "other_views": ["b.jpg"]}]))
    with warnings.catch_warnings(action="error"):
        load_list(tmp_path / "list.json")


def test_a_picture_in_both_parts_under_two_subjects_is_warned_of(draw: Callable[..., Path]):
    root = draw("rex.png", "view.png", "mug.png")
    entries = [
        {"prompt": "p", "image_path": f"{name}.png", "other_views": ["view.png"], "subject": name}
        for name in ("rex", "mug")
    ]
    (root / "list.json").write_text(json.dumps(entries))
    with pytest.warns(UserWarning, match=r"^1 picture is used both in training and held out, .*view\.png under '"):
        load_data(str(root / "list.json"), root=None, class_word=None, held_out_share=0.5, seed=0)
