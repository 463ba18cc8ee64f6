from collections.abc import Callable
from pathlib import Path

import pytest

from customized_grpo.data.dreambench import dreambench_cases
from customized_grpo.data.photographs import load_photographs
from customized_grpo.data.prompts import TRAINING, VALIDATION

pytestmark = pytest.mark.filterwarnings("ignore:one subject alone")


def test_every_photograph_is_the_reference_in_turn(draw: Callable[..., Path]):
    root = draw("rex/a.png", "rex/b.jpg", "rex/c.webp") / "rex"
    train, validation = load_photographs(root, "dog")
    assert (len(train), len(validation)) == (3 * 30, 3 * 10)
    first = train[0]
    assert (first.id, first.subject, first.class_word) == ("a.png/00", "rex", "dog")
    assert first.prompt == "the dog beside a waterfall among ferns"
    assert first.references == (root / "a.png",)
    assert first.other_views == (root / "b.jpg", root / "c.webp")
    assert [sample.references[0] for sample in train[:3]] == [root / name for name in ("a.png", "b.jpg", "c.webp")]
    assert validation[-1].id == "c.webp/v09"
    assert len({sample.id for sample in [*train, *validation]}) == 120


def test_validation_prompts_are_not_trained_on(draw: Callable[..., Path]):
    train, validation = load_photographs(draw("a.png"), "dog")
    assert not {sample.prompt for sample in train} & {sample.prompt for sample in validation}
    assert train[0].other_views == ()


def test_one_subject_warns_of_overfitting(draw: Callable[..., Path]):
    with pytest.warns(UserWarning, match=r"one subject alone \(rex, photographs: 2\): the model will overfit"):
        load_photographs(draw("rex/a.png", "rex/b.png") / "rex", "dog")


def test_hidden_files_are_ignored_and_all_others_must_be_photographs(
    draw: Callable[..., Path], problems: Callable[..., list[str]]
):
    root = draw("a.png")
    (root / ".DS_Store").write_text("")
    load_photographs(root, "dog")
    (root / "a.txt").write_text("a caption")
    (root / "b.jpg").write_bytes(b"no jpeg")
    (root / "more").mkdir()
    assert problems(load_photographs, root, "dog") == [
        f"{root}/more: is a folder; for several subjects, use a list, an imagefolder or captions",
        f"{root}/a.txt: not a picture that Pillow can read; save it as PNG or JPEG, or leave it out",
        f"{root}/b.jpg: not a picture that Pillow can read; save it as PNG or JPEG, or leave it out",
    ]


def test_an_empty_folder_and_a_missing_one(tmp_path: Path, problems: Callable[..., list[str]]):
    assert problems(load_photographs, tmp_path, "dog") == ["holds no photographs"]
    assert problems(load_photographs, tmp_path / "none", "dog") == ["no such file or directory"]


def test_the_built_in_prompts_are_30_and_10_different_ones_with_one_place_for_the_word():
    prompts = [*TRAINING, *VALIDATION]
    assert (len(TRAINING), len(VALIDATION), len(set(prompts))) == (30, 10, 40)
    assert all(prompt.count("{}") == prompt.count("{") == 1 for prompt in prompts)
    assert all("the {}" in prompt for prompt in prompts)


def test_no_built_in_prompt_uses_a_scene_of_dreambench(dreambench: Path):
    common = {"a", "an", "the", "of", "on", "in", "with", "and", "top", "to", "it", "background", "around", "street"}
    theirs = {word for case in dreambench_cases(dreambench) for word in case.prompt.split()} - common
    theirs -= {case.class_word for case in dreambench_cases(dreambench)}
    ours = {word.strip(",") for prompt in [*TRAINING, *VALIDATION] for word in prompt.split()}
    assert ours & theirs <= {"red", "yellow", "green", "white", "black"}  # colours of other things
