import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.data import DataError
from customized_grpo.data.syncd import load_syncd


def entry(*names: str, **fields: object) -> dict[str, object]:
    return {"filenames": list(names), "prompts": [f"prompt of {name}" for name in names]} | fields


RIGID = entry("0_0_0.jpg", "0_0_1.jpg", "0_0_2.jpg", objaverse_id="a1b2", category="rigid", dino_scores=[[0.0]])
CAT = entry("cat_0_0_0_0.jpg", "cat_0_0_0_1.jpg", objaverse_id="", category="deformable")


@pytest.fixture
def root(draw: Callable[..., Path]) -> Path:
    """Two parts, as the published archive unpacks: pictures, their masks, one metadata file each."""
    for part, each in (("rigid", RIGID), ("deformable", CAT)):
        names = each["filenames"]
        assert isinstance(names, list)
        draw(*(f"{part}/{name}" for name in names))
        draw(*(f"{part}/masks/{name}" for name in names), colour="white")
        (draw() / part / "metadata.json").write_text(json.dumps([each]))
    return draw()


def test_each_picture_is_asked_for_once_with_another_one_as_reference(root: Path):
    samples = load_syncd(root)
    assert [sample.id for sample in samples] == [
        *("deformable/cat_0_0_0_0", "deformable/cat_0_0_0_1", "rigid/0_0_0", "rigid/0_0_1", "rigid/0_0_2"),
    ]
    last = samples[-1]
    assert last.prompt == "prompt of 0_0_2.jpg"
    assert last.references == (root / "rigid/0_0_0.jpg",)
    assert last.other_views == (root / "rigid/0_0_1.jpg",)  # not the prompt's own picture, rigid/0_0_2.jpg
    assert samples[0].other_views == (root / "deformable/cat_0_0_0_0.jpg",)  # a set of two has no further picture
    assert [str(sample.prompt_picture) for sample in samples] == [f"{root / sample.id}.jpg" for sample in samples]
    assert last.mask == root / "rigid/masks/0_0_0.jpg"
    assert (last.subject, last.class_word) == ("a1b2", None)
    assert last.extra == {"objaverse_id": "a1b2", "category": "rigid", "dino_scores": [[0.0]]}


def test_a_set_without_asset_is_a_subject_of_its_own(root: Path):
    assert {sample.subject for sample in load_syncd(root)} == {"a1b2", "deformable/cat_0_0_0_0"}


def test_root_may_be_one_part(root: Path):
    assert [sample.id for sample in load_syncd(root / "rigid")] == ["0_0_0", "0_0_1", "0_0_2"]


def test_metadata_with_scores_are_read_only_if_there_are_no_others(root: Path):
    (root / "rigid/metadata_with_scores.json").write_text(json.dumps([RIGID]))
    assert len(load_syncd(root)) == 5
    (root / "rigid/metadata.json").unlink()
    assert len(load_syncd(root)) == 5


def test_without_the_folder_masks_there_are_none(draw: Callable[..., Path]):
    root = draw("0_0_0.jpg", "0_0_1.jpg", "0_0_2.jpg")
    (root / "metadata.json").write_text(json.dumps([RIGID]))
    assert [sample.mask for sample in load_syncd(root)] == [None, None, None]


def test_every_problem_of_every_file_is_listed_at_once(root: Path, problems: Callable[..., list[str]]):
    entries = [
        "text",
        {"filenames": ["0_0_0.jpg"]},
        RIGID | {"prompts": ["one"]},
        RIGID | {"filenames": "0_0_0.jpg"},
        RIGID,
        RIGID | {"objaverse_id": "again"},
    ]
    (root / "rigid/metadata.json").write_text(json.dumps(entries))
    (root / "rigid/masks/0_0_1.jpg").unlink()
    Image.new("RGB", (4, 3)).save(root / "other.png")
    (root / "other_metadata.json").write_text("{]")
    found = problems(load_syncd, root)
    assert found == [
        'metadata.json, entry 1: must be an object with filenames and prompts, not "text"',
        "metadata.json, entry 2: has no prompts (fields: filenames)",
        "metadata.json, entry 3: has 3 filenames and 1 prompt; a set needs two or more, one prompt each",
        'metadata.json, entry 4: filenames must be a list of paths, not "0_0_0.jpg"',
        *(
            f'metadata.json, entries 5, 6: id "rigid/0_0_{number}" is used more than once; give each sample its own'
            for number in range(3)
        ),
        f"metadata.json, entries 5, 6: {root}/rigid/masks/0_0_1.jpg: no such file or directory; check the path",
        "other_metadata.json: line 1: not JSON: Expecting property name enclosed in double quotes, column 2",
    ]


def test_a_folder_without_metadata_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"(?s)metadata\.json.* one folder below.*unzip\.sh"):
        load_syncd(tmp_path)


def test_names_composed_of_other_characters_and_a_prompt_with_a_nul(
    draw: Callable[..., Path], problems: Callable[..., list[str]]
):
    for folder, colour in ((".", None), ("masks", "white")):
        root = draw(*(f"{folder}/{name}.jpg" for name in ("cafe\u0301", "b")), colour=colour)
    listed = entry("caf\xe9.jpg", "b.jpg")
    (root / "metadata.json").write_text(json.dumps([listed]))
    sample = load_syncd(root)[1]
    assert (sample.references, sample.mask) == ((root / "cafe\u0301.jpg",), root / "masks" / "cafe\u0301.jpg")
    (root / "metadata.json").write_text(json.dumps([listed | {"prompts": ["a\0b", "c"]}]))
    assert problems(load_syncd, root) == [
        'metadata.json, entry 1: prompts: "a\\u0000b" has a NUL character (\\u0000); remove it'
    ]
