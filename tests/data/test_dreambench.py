import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from customized_grpo.data import DataError, Sample, dreambench_cases, dreambench_pairs, load_data
from customized_grpo.data.dreambench import REFERENCES

# The published form of the file, with 25 invented prompts in each list; every third subject is a dog.
CLASSES = {name: ("lamp", "lamp", "dog")[index % 3] for index, name in enumerate(REFERENCES)}
FORMAT = "'a {{0}} {{1}} {} {}'.format(unique_token, class_token),"


def text(classes: dict[str, str], objects: int = 25, live: int = 25) -> str:
    def prompts(kind: str, count: int) -> list[str]:
        lines = [FORMAT.format(kind, number) for number in range(count)]
        return ["prompt_list = [", *lines[:-1], lines[-1].rstrip(","), "]"]

    pairs = [f"{subject},{word}" for subject, word in classes.items()]
    return "\n".join(
        [
            *("Classes", "", "subject_name,class", *pairs, "", "Prompts", "", "Object Prompts", ""),
            *(*prompts("thing", objects), "", "Live Subject Prompts", "", *prompts("alive", live), ""),
        ]
    )


@pytest.fixture
def made(draw: Callable[..., Path]) -> Path:
    """All subjects with two small photographs each, in the published layout."""
    for subject, reference in REFERENCES.items():
        draw(f"{subject}/{reference}", f"{subject}/other.jpg")
    root = draw()
    (root / "prompts_and_classes.txt").write_text(text(CLASSES))
    return root


def test_750_cases_with_the_prompts_of_their_kind(made: Path):
    cases = dreambench_cases(made)
    assert len(cases) == len({case.id for case in cases}) == 750
    assert cases[0] == Sample(
        id="backpack/00",
        subject="backpack",
        prompt="a lamp thing 0",
        references=(made / "backpack/02.jpg",),
        other_views=(made / "backpack/other.jpg",),
        class_word="lamp",
    )
    assert (cases[74].id, cases[74].prompt) == ("bear_plushie/24", "a dog alive 24")


@pytest.mark.parametrize("place", [".", "dataset"])
def test_root_is_the_clone_or_its_dataset_folder(place: str, made: Path, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(made, root / place, dirs_exist_ok=True)
    assert dreambench_cases(root)[0].references == (root / place / "backpack/02.jpg",)


def test_every_problem_of_text_and_photographs_is_listed_at_once(made: Path, problems: Callable[..., list[str]]):
    classes = {name: word for name, word in CLASSES.items() if name != "vase"}
    lines = text(classes, live=24).split("\n")
    lines[3] = "backpack"
    lines[4] = "toaster,toaster"
    lines[5] = lines[6]
    lines[40] = "a prompt without quotes"
    (made / "prompts_and_classes.txt").write_text("\n".join(lines))
    (made / "can/other.jpg").write_text("no picture")
    (made / "candle/02.jpg").unlink()
    shutil.rmtree(made / "clock")
    assert problems(dreambench_cases, made) == [
        'prompts_and_classes.txt, line 4: not a subject and its class, separated by a comma: "backpack"',
        "prompts_and_classes.txt, line 5: toaster is not one of the 30 subjects with a customary reference",
        "prompts_and_classes.txt, line 7: names berry_bowl a second time",
        'prompts_and_classes.txt, line 41: not a quoted prompt with {0} and {1}: "a prompt without quotes"',
        "prompts_and_classes.txt: 24 prompts under Object Prompts, not 25",
        "prompts_and_classes.txt: 24 prompts under Live Subject Prompts, not 25",
        "prompts_and_classes.txt: no class for backpack, backpack_dog, bear_plushie, vase",
        f"{made}/candle/02.jpg: missing; it is the customary reference",
        f"{made}/clock: no such file or directory",
        f"{made}/can/other.jpg: not a picture that Pillow can read; save it as PNG or JPEG, or leave it out",
    ]


def test_a_folder_that_is_not_dreambench_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"no prompts_and_classes\.txt here or in dataset/\n.*google/dreambooth"):
        dreambench_cases(tmp_path)
    with pytest.raises(DataError, match="no such file or directory"):
        dreambench_cases(tmp_path / "none")


def test_the_real_cases_are_the_customary_list_entry_by_entry(dreambench: Path):
    listed = json.loads((dreambench / "reference_list_750.json").read_text())
    cases = dreambench_cases(dreambench)
    for case, entry in zip(cases, listed, strict=True):
        (reference,) = case.references
        assert isinstance(reference, Path)
        assert case.prompt == entry["prompt"]
        assert [f"dreambooth/dataset/{reference.parent.name}/{reference.name}"] == entry["image_paths"]


def test_the_real_photographs_and_classes(dreambench: Path):
    cases = dreambench_cases(dreambench)
    assert set(Counter(case.subject for case in cases).values()) == {25}
    assert len({case.class_word for case in cases}) == 15
    # 158 photographs in all, one of each subject the reference
    assert sum(len({case.subject: case.other_views for case in cases}[name]) for name in REFERENCES) == 158 - 30
    assert all(case.references[0] not in case.other_views for case in cases)
    assert sum(case.class_word in ("cat", "dog") for case in cases) == 9 * 25


def test_the_real_cases_are_divided_by_subject(dreambench: Path):
    train, held_out = load_data("dreambench", root=dreambench, class_word=None, held_out_share=0.2, seed=0)
    assert (len(train), len(held_out)) == (24 * 25, 6 * 25)
    assert not {case.subject for case in train} & {case.subject for case in held_out}


def pair(prompt: str, *names: str) -> dict[str, object]:
    return {"prompt": prompt, "image_paths": [f"./dreambooth/dataset/{name}" for name in names]}


PAIRS = [
    pair("a lamp and a dog in the fog", "backpack/02.jpg", "bear_plushie/03.jpg"),
    pair("a lamp and a lamp in the fog", "can/01.jpg", "vase/02.jpg"),
    pair("a lamp and a dog in the rain", "backpack/02.jpg", "bear_plushie/03.jpg"),
]


def test_masks_next_to_the_subjects_are_found(made: Path, draw: Callable[..., Path]):
    draw("masks/backpack/02.png", colour="white")
    draw("masks/dog/00.png", colour="white")  # of another photograph
    told = r"without a mask in .*: no masks/backpack_dog/02\.png, .* and 26 more"
    with pytest.warns(UserWarning, match=told):
        masked = [case for case in dreambench_cases(made) if case.mask is not None]
    assert {case.subject for case in masked} == {"backpack"}
    assert masked[0].mask == made / "masks/backpack/02.png"


def test_pairs_keep_both_references_in_order_and_number_the_prompts_of_each_pair(made: Path):
    (made / "dreambench_multiip.json").write_text(json.dumps(PAIRS))
    pairs = dreambench_pairs(made)
    assert [case.id for case in pairs] == ["backpack+bear_plushie/00", "can+vase/00", "backpack+bear_plushie/01"]
    assert pairs[0] == Sample(
        id="backpack+bear_plushie/00",
        subject="backpack+bear_plushie",
        prompt="a lamp and a dog in the fog",
        references=(made / "backpack/02.jpg", made / "bear_plushie/03.jpg"),
    )


def test_the_list_of_pairs_may_be_above_the_dataset_folder(made: Path, tmp_path_factory: pytest.TempPathFactory):
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(made, clone / "dataset")
    (clone / "dreambench_multiip.json").write_text(json.dumps(PAIRS))
    assert dreambench_pairs(clone)[0].references[0] == clone / "dataset/backpack/02.jpg"


def test_every_problem_of_pairs_is_listed_at_once(made: Path, problems: Callable[..., list[str]]):
    entries = [PAIRS[0], pair("alone", "can/01.jpg"), pair("", "can/01.jpg", "vase/02.jpg")]
    (made / "dreambench_multiip.json").write_text(json.dumps(entries))
    assert problems(dreambench_pairs, made) == [
        "dreambench_multiip.json, entry 2: needs 2 references, has 1",
        'dreambench_multiip.json, entry 3: prompt must be a non-empty text, not ""',
    ]


def test_a_missing_list_of_pairs_is_reported_with_its_source(made: Path):
    with pytest.raises(DataError, match=r"no dreambench_multiip\.json\nCopy .*github\.com/bytedance/UNO"):
        dreambench_pairs(made)
