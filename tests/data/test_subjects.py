import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from customized_grpo.data import DataError, Sample, load_data, load_list
from customized_grpo.data.lists import load_imagefolder

Entries = Mapping[str, list[str]]  # other views by the reference


def listed(draw: Callable[..., Path], entries: Entries, **fields: object) -> Path:
    root = draw(*entries, *(view for views in entries.values() for view in views)) / "list.jsonl"
    lines = [
        json.dumps({"prompt": f"{name}", "image_path": name, "other_views": views} | fields)
        for name, views in entries.items()
    ]
    root.write_text("\n".join(lines))
    return root


def subjects(draw: Callable[..., Path], entries: Entries) -> list[str]:
    return [sample.subject for sample in load_list(listed(draw, entries))]


KINDS = {
    f"{name}/{kind}/0.png": [f"{name}/{other}/0.png"]
    for name in ("rex", "mug", "toy", "cup")
    for kind, other in (("reference", "scene"), ("scene", "reference"))
}


def test_folders_of_which_a_sample_shows_both_are_one_subject(draw: Callable[..., Path]):
    assert subjects(draw, KINDS) == ["rex", "rex", "mug", "mug", "toy", "toy", "cup", "cup"]
    with warnings.catch_warnings(action="error"):  # above all none of pictures in both parts
        train, held_out = load_data(str(listed(draw, KINDS)), root=None, class_word=None, held_out_share=0.5, seed=0)
    names = [{sample.subject for sample in part} for part in (train, held_out)]
    assert [len(part) for part in names] == [2, 2]
    assert not names[0] & names[1]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"rex/1.png": [], "rex/2.png": [], "mug/1.png": []}, ["rex", "rex", "mug"]),
        ({"a/b/rex/1.png": [], "a/c/mug/1.png": []}, ["rex", "mug"]),
        ({"rex/1.png": ["rex/more/1.png"], "mug/1.png": []}, ["rex", "mug"]),
        ({"rex/ref/1.png": ["rex/out/1.png"], "mug/1.png": ["mug/2.png"]}, ["rex", "mug"]),
    ],
)
def test_names_of_folders(entries: Entries, expected: list[str], draw: Callable[..., Path]):
    assert subjects(draw, entries) == expected


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (
            ("dog/train/1.png", "cat/train/1.png", "dog/test/1.png"),
            "lines 1, 2: 2 folders are called train (dog/train, cat/train)",
        ),
        (
            ("train/dog/1.png", "val/dog/1.png", "train/cat/1.png"),
            "lines 1, 2: 2 folders are called dog (train/dog, val/dog)",
        ),
        (
            tuple(f"{name}/ref/1.png" for name in "abcd"),
            "lines 1, 2, 3 and 1 more: 4 folders are called ref (a/ref, b/ref, c/ref and 1 more)",
        ),
    ],
)
def test_a_name_of_several_folders_asks_for_subjects(names: tuple[str, ...], problem: str, draw: Callable[..., Path]):
    """In the first list there are two subjects, in the second one dog; the names alone do not say so."""
    entries: Entries = {name: [] for name in names}
    with pytest.raises(DataError) as caught:
        load_list(listed(draw, entries))
    assert caught.value.problems == (
        f"list.jsonl, {problem}, which may be one subject or several; give each sample a subject",
    )
    assert [sample.subject for sample in load_list(listed(draw, entries, subject="rex"))] == ["rex"] * len(names)


def test_folders_without_one_that_holds_only_them(draw: Callable[..., Path]):
    with pytest.warns(UserWarning, match=r"^the folders of rex1\+rex2 are taken for one subject, because"):
        names = subjects(draw, {"data/rex1/1.png": ["data/rex2/1.png"], "data/rex2/1.png": [], "data/mug/1.png": []})
    assert names == ["rex1+rex2", "rex1+rex2", "mug"]


def test_a_sample_with_references_of_two_subjects_makes_them_no_single_one(draw: Callable[..., Path]):
    root = draw("can/1.png", "can/2.png", "mug/1.png", "mug/2.png")
    entries = [
        {"prompt": "both", "image_paths": ["can/1.png", "mug/1.png"], "other_views": ["can/2.png", "mug/2.png"]},
        {"prompt": "one", "image_path": "mug/1.png"},
    ]
    (root / "list.json").write_text(json.dumps(entries))
    samples: list[Sample] = load_list(root / "list.json")
    assert [sample.subject for sample in samples] == ["can", "mug"]


@pytest.mark.filterwarnings("error")
def test_a_picture_beside_the_folders_of_others_is_a_subject_of_its_own(draw: Callable[..., Path]):
    root = draw("a.png", "sub/b.png")
    rows = [{"file_name": name, "text": "a thing"} for name in ("a.png", "sub/b.png")]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [sample.subject for sample in load_imagefolder(root)] == [root.name, "sub"]
