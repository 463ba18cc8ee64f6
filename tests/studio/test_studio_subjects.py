"""References: held-out cases of a run, or uploaded pictures of every kind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.config import RunConfig
from customized_grpo.critters.samples import asking, case_of
from customized_grpo.data import Sample
from customized_grpo.data.images import PictureError, load_image
from customized_grpo.errors import UsageError
from customized_grpo.studio.opened import Opened
from customized_grpo.studio.subjects import CHOICES, choices, uploaded, with_prompt
from customized_grpo.training.samples import load_samples


def test_choices_are_the_first_held_out_cases(make_config: Callable[..., RunConfig]):
    config = make_config("data.held_out_samples=30")
    offered, held_out = choices(Opened("run", config)), load_samples(config)[1]
    assert len(offered) == CHOICES
    for one, other in zip(offered, held_out, strict=False):
        assert (one.id, one.prompt, one.extra) == (other.id, other.prompt, other.extra)
        assert one.reference_images()[0].tobytes() == other.reference_images()[0].tobytes()


def test_choices_of_a_run_on_files_are_those_that_it_held_out(tmp_path: Path, make_config: Callable[..., RunConfig]):
    for subject in "abcd":
        (tmp_path / "pictures" / subject).mkdir(parents=True)
        for n in range(3):
            colour = (40 * n, 60 * "abcd".index(subject), 0)
            Image.new("RGB", (32, 32), colour).save(tmp_path / "pictures" / subject / f"{n}.png")
    lines = [
        json.dumps({"id": s, "subject": s, "prompt": f"{s} at night", "image_paths": [f"{s}/0.png", f"{s}/1.png"]})
        for s in "abcd"
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    data = (f"data.source={tmp_path / 'list.jsonl'}", f"data.root={tmp_path / 'pictures'}", "data.train_samples=null")
    config = make_config(*data, "data.held_out_share=0.5", "model.path=critters", "evaluation.metrics=[]")
    _, held_out = load_samples(config)
    offered = choices(Opened("run", config, tmp_path / "run", tmp_path / "run"))
    assert [sample.id for sample in offered] == [sample.id for sample in held_out]
    assert len(offered) == 2


def test_uploads_are_read_as_every_other_picture_and_then_removed(tmp_path: Path):
    picture = Image.new("RGB", (60, 40), "red")
    picture.paste("blue", (0, 0, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.convert("CMYK").save(tmp_path / "cmyk.tiff")
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "transparent.png")
    files = [tmp_path / name for name in ("turned.png", "cmyk.tiff", "transparent.png")]
    expected = [load_image(file) for file in files]
    sample = uploaded(files, "dog")
    assert [image.size for image in sample.reference_images()] == [(40, 60), (60, 40), (32, 32)]
    for image, other in zip(sample.reference_images(), expected, strict=True):
        assert image.tobytes() == other.tobytes()
    assert sample.class_word == "dog"
    assert not [file for file in files if file.exists()]


def test_a_bad_upload_is_named_and_removed_too(tmp_path: Path):
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(PictureError, match=r"^x\.png: not a picture that Pillow can read; save it as PNG or JPEG"):
        uploaded([tmp_path / "x.png"], None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("prompt", "complaint"), [(" \n", "the prompt is empty"), ("a \0 dog", "NUL"), ("a \ud800 dog", "surrogate")]
)
def test_a_prompt_that_cannot_be_generated_is_refused(prompt: str, complaint: str, samples: list[Sample]):
    with pytest.raises(UsageError, match=complaint):
        with_prompt(samples[0], prompt)
    with pytest.raises(UsageError, match="no reference; choose a picture"):
        with_prompt(None, "a dog")


def test_the_oracle_judges_another_prompt_of_its_world_and_no_other(samples: list[Sample]):
    asked = asking(samples[0], "a critter at night, at the left, wearing a red hat")
    critter, situation = case_of(asked) or (None, None)
    assert critter == samples[0].extra["critter"]
    assert situation is not None
    assert situation.prompt == asked.prompt
    assert case_of(asking(samples[0], "a critter on the moon")) is None
    assert asking(samples[0], samples[0].prompt) is samples[0]
