import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customized_grpo.data import Sample


def sample(**fields) -> Sample:
    return Sample(
        **{"id": "a", "subject": "dog", "prompt": "a dog", "references": (Image.new("L", (2, 2), 7),)} | fields
    )


def test_files_and_pictures_in_memory_come_as_rgb_at_their_own_size(tmp_path: Path):
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(tmp_path / "file.png")
    given = sample(
        references=(tmp_path / "file.png", Image.new("L", (5, 7), 9)), other_views=(Image.new("1", (1, 3)),)
    )
    first, second = given.reference_images()
    assert (first.mode, first.size, first.getpixel((0, 0))) == ("RGB", (30, 20), (255, 255, 255))
    assert (second.mode, second.size, second.getpixel((0, 0))) == ("RGB", (5, 7), (9, 9, 9))
    (view,) = given.other_view_images()
    assert (view.mode, view.size) == ("RGB", (1, 3))


def test_files_are_read_again_at_each_call(tmp_path: Path):
    file = tmp_path / "file.png"
    Image.new("RGB", (2, 2), (1, 2, 3)).save(file)
    given = sample(references=(file,))
    assert given.reference_images()[0] is not given.reference_images()[0]
    Image.new("RGB", (2, 2), (4, 5, 6)).save(file)
    assert given.reference_images()[0].getpixel((0, 0)) == (4, 5, 6)
    file.unlink()
    with pytest.raises(ValueError, match=r"file\.png: no such file"):
        given.reference_images()


def test_mask_is_grey_or_absent():
    assert sample().mask_image() is None
    mask = sample(mask=Image.new("1", (2, 2), 1)).mask_image()
    assert mask is not None
    assert mask.mode == "L"
    assert (np.asarray(mask) == 255).all()


def test_a_sample_is_frozen_hashed_by_id_and_compared_by_value():
    file = Path("dog/00.jpg")
    one, same, other = (sample(id=name, references=(file,), extra={"k": [1]}) for name in "aab")
    assert one == same
    assert one != other
    assert {one: 1}[same] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.prompt = "another"  # pyright: ignore[reportAttributeAccessIssue]


def test_id_and_reference_are_needed():
    with pytest.raises(ValueError, match="prompt 'a dog' has no id"):
        sample(id="")
    with pytest.raises(ValueError, match="sample 'a' has no reference"):
        sample(references=())


def test_importing_the_room_does_not_import_torch():
    code = "import sys, customized_grpo.data; print({'torch', 'diffusers', 'transformers'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
