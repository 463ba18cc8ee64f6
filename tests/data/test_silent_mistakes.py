"""Mistakes in data that would train on something else than what was meant: each is refused, or told in one line."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.data import DataError, load_list
from customized_grpo.data.captions import load_captions
from customized_grpo.data.sources import load_data
from customized_grpo.measure.request import make_request

TINY = str(Path(__file__).parents[1] / "tiny.yaml")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two subjects with two pictures each, all different."""
    for n, name in enumerate(("rex/0", "rex/1", "mug/0", "mug/1")):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3), (60 * n, 0, 0)).save(file)
    return tmp_path


def listed(folder: Path, *entries: str | dict[str, object]) -> Path:
    file = folder / "list.jsonl"
    file.write_text("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries))
    return file


def entry(picture: str, **more: object) -> dict[str, object]:
    return {"prompt": f"a picture like {picture}", "image_path": picture, **more}


def halves(source: Path) -> tuple[set[str], set[str]]:
    """Subjects in training and held out."""
    train, held_out = load_data(str(source), root=None, class_word=None, held_out_share=0.5, seed=0)
    return {sample.subject for sample in train}, {sample.subject for sample in held_out}


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_key_that_is_written_twice_is_refused(ending: str, pets: Path):
    twice = '{"prompt": "rex", "image_path": "rex/0.png", "image_path": "mug/0.png"}'
    file = pets / f"list.{ending}"
    file.write_text(twice if ending == "jsonl" else f"[{twice}]")
    with pytest.raises(DataError, match='"image_path" is written twice; keep one'):
        load_list(file)


def test_blanks_and_composition_make_no_second_subject(pets: Path):
    spellings = ("rex", "rex ", " rex\n")
    samples = load_list(listed(pets, *(entry("rex/0.png", id=str(n), subject=s) for n, s in enumerate(spellings))))
    assert {sample.subject for sample in samples} == {"rex"}
    for name, text in (("10_caf\N{LATIN SMALL LETTER E WITH ACUTE}", "a"), ("5_cafe\N{COMBINING ACUTE ACCENT}", "b")):
        (pets / "kohya" / name).mkdir(parents=True)
        shutil.copy(pets / f"rex/{'ab'.index(text)}.png", pets / "kohya" / name / f"{text}.png")
        (pets / "kohya" / name / f"{text}.txt").write_text(text)
    with pytest.warns(UserWarning, match="repeats"):
        captioned = load_captions(pets / "kohya")
    assert {sample.subject for sample in captioned} == {"caf\N{LATIN SMALL LETTER E WITH ACUTE}"}


def test_subjects_that_differ_in_case_alone_are_told(pets: Path):
    file = listed(pets, entry("rex/0.png", subject="rex"), entry("rex/1.png", subject="Rex"), entry("mug/0.png"))
    with pytest.warns(UserWarning, match="names differ in case alone count as several: Rex, rex"):
        halves(file)


def test_splits_are_no_subjects_without_a_word(pets: Path):
    for name, number in (("train", 0), ("val", 1)):
        (pets / "set" / name).mkdir(parents=True)
        for subject in ("rex", "mug"):
            shutil.copy(pets / subject / f"{number}.png", pets / "set" / name / f"{subject}{number}.png")
            (pets / "set" / name / f"{subject}{number}.txt").write_text(subject)
    with pytest.warns(UserWarning, match="subjects are called train, val, as parts of a data set are"):
        halves(pets / "set")


def test_a_linked_folder_has_its_own_name(pets: Path):
    for subject in ("rex", "mug"):
        (pets / "store" / subject / "img").mkdir(parents=True)
        for n in (0, 1):
            shutil.copy(pets / subject / f"{n}.png", pets / "store" / subject / "img")
            (pets / "store" / subject / "img" / f"{n}.txt").write_text(f"{subject} {n}")
        (pets / "linked" / subject).parent.mkdir(exist_ok=True)
        (pets / "linked" / subject).symlink_to(pets / "store" / subject / "img")
    assert {sample.subject for sample in load_captions(pets / "linked")} == {"rex", "mug"}


@pytest.mark.parametrize("link", [False, True])
def test_equal_files_of_two_subjects_on_both_sides_are_told(link: bool, pets: Path):
    if link:
        (pets / "dog").symlink_to(pets / "rex")
    else:
        shutil.copytree(pets / "rex", pets / "dog")
    file = listed(pets, *(entry(f"{subject}/{n}.png") for subject in ("rex", "dog") for n in (0, 1)))
    with pytest.warns(UserWarning, match="2 pictures are used both in training and held out, under two subjects"):
        train, held_out = halves(file)
    assert train | held_out == {"rex", "dog"}


def test_fields_that_are_nearly_ours_are_told(pets: Path):
    file = listed(pets, entry("rex/0.png", Subject="rex", other_view=["rex/1.png"], note="mine"), entry("mug/0.png"))
    told = r'nothing reads: "Subject" \(did you mean subject\?\), "other_view" \(did you mean other_views\?\)$'
    with pytest.warns(UserWarning, match=told):
        load_list(file)


def test_leading_folders_that_are_not_there_are_told(pets: Path):
    for n in (0, 1):
        shutil.copy(pets / f"rex/{n}.png", pets / f"{n}.png")
    file = listed(pets, *(entry(f"none/{n}.png") for n in (0, 1)))
    with pytest.warns(UserWarning, match='list.jsonl were found in .*, without the leading "none"'):
        load_list(file)


def test_a_blank_before_a_quoted_text_is_no_part_of_it(pets: Path):
    (pets / "metadata.csv").write_text('file_name, text, subject\nrex/0.png, "a dog, in snow", rex\n')
    (sample,) = load_list(pets / "metadata.csv", aliases={"image_path": "file_name", "prompt": "text"})
    assert (sample.prompt, sample.subject) == ("a dog, in snow", "rex")


@pytest.mark.parametrize("source", ["critters", "critters-dye"])
def test_a_folder_that_a_built_in_world_does_not_read_is_told(source: str, tmp_path: Path):
    with pytest.warns(UserWarning, match=f"source={source} draws its samples: data.root={tmp_path} has no effect"):
        make_request(TINY, [f"data.source={source}", f"model.path={source}", f"data.root={tmp_path}"])


def test_a_source_that_is_not_there_is_not_an_unknown_ending(tmp_path: Path):
    with pytest.raises(DataError, match="not the name of a source, and no such file or folder"):
        load_data(str(tmp_path / "photos.v2"), root=None, class_word=None, held_out_share=0.1, seed=0)
