import json
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.data import DataError, Sample, load_list, split_by_subject


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("dog/00.png", "dog/01.png", "cat/00.png", "cat/mask.png"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3), "red").save(file)
    return tmp_path


def write(file: Path, *items: object) -> Path:
    """An array or, for .jsonl, one line per item; a str or bytes item is written as it is."""
    if file.suffix == ".jsonl":
        file.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in items))
    else:
        file.write_text(json.dumps(items))
    return file


DOG = {"prompt": "a dog in the snow", "image_paths": ["dog/00.png"]}
CAT = {"prompt": "a cat in the snow", "image_paths": ["cat/00.png"]}


def problems(file: Path, root: Path | None = None) -> list[str]:
    with pytest.raises(DataError) as caught:
        load_list(file, root)
    return list(caught.value.problems)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_defaults(ending: str, root: Path):
    dog, cat = load_list(write(root / f"list.{ending}", DOG, CAT))
    assert dog == Sample("00000", "dog", "a dog in the snow", (root / "dog/00.png",))
    assert (cat.id, cat.subject, cat.references) == ("00001", "cat", (root / "cat/00.png",))
    assert dog.reference_images()[0].getpixel((0, 0)) == (255, 0, 0)


def test_every_field(root: Path):
    full = DOG | {
        "image_paths": ["dog/00.png", "cat/00.png"],
        "id": "dog-snow",
        "subject": "rex",
        "other_views": ["dog/01.png"],
        "mask": "cat/mask.png",
        "class_word": "dog",
        "seed": 3,
        "note": None,
    }
    nulls = dict.fromkeys(["image_paths", "id", "subject", "other_views", "mask", "class_word"])
    single = {"prompt": "p", "image_path": "dog/01.png"} | nulls
    one, two = load_list(write(root / "list.jsonl", full, single))
    assert one == Sample(
        id="dog-snow",
        subject="rex",
        prompt="a dog in the snow",
        references=(root / "dog/00.png", root / "cat/00.png"),
        other_views=(root / "dog/01.png",),
        mask=root / "cat/mask.png",
        class_word="dog",
        extra={"seed": 3, "note": None},
    )
    assert two == Sample("00001", "dog", "p", (root / "dog/01.png",))


def test_text_is_utf8_with_or_without_mark_and_lines_end_at_newlines_only(root: Path):
    prompt = "ein Hund\u2028im Schnee 雪"  # U+2028 may stand unescaped in JSON and is no end of line
    line = json.dumps(DOG | {"prompt": prompt}, ensure_ascii=False)
    (root / "list.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\r\n{json.dumps(CAT)}\r\n".encode())
    (root / "list.json").write_text(f"[{line}]", encoding="utf-8-sig")
    assert [sample.prompt for sample in load_list(root / "list.jsonl")] == [prompt, "a cat in the snow"]
    assert [sample.prompt for sample in load_list(root / "list.json")] == [prompt]


def test_paths_are_relative_to_the_list_or_to_root_or_absolute(root: Path):
    (root / "lists").mkdir()
    up = write(root / "lists" / "up.json", {"prompt": "p", "image_path": "../dog/00.png"})
    assert load_list(up, root)[0].references == (root / "dog/00.png",)
    elsewhere = write(root / "lists" / "list.json", DOG, CAT | {"image_paths": [str(root / "cat/00.png")]})
    assert [sample.subject for sample in load_list(elsewhere, root)] == ["dog", "cat"]
    flat = write(root / "dog" / "list.json", {"prompt": "p", "image_path": "00.png"})
    assert load_list(flat)[0].subject == "dog"


def test_relative_paths_in_the_working_folder(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root / "dog")
    write(Path("list.json"), {"prompt": "p", "image_path": "00.png"})
    write(Path("around.json"), {"prompt": "p", "image_path": "sub/../00.png"})
    write(Path("up.json"), {"prompt": "p", "image_path": "../00.png"})
    Image.new("RGB", (2, 2)).save(root / "00.png")
    assert load_list("list.json")[0].subject == "dog"
    assert load_list("around.json")[0].references == (Path("00.png"),)
    assert problems(Path("up.json")) == [
        'up.json, entry 1: "../00.png" leads out of ., where pictures are read from; '
        "give data.root a folder above both"
    ]


def test_shared_leading_folders_are_dropped_for_the_whole_list_or_not_at_all(root: Path):
    def moved(item: dict, folder: str) -> dict:
        return item | {"image_paths": [f"{folder}/{name}" for name in item["image_paths"]]}

    listed = write(root / "list.json", moved(DOG, "a/b"), moved(CAT, "a/b"))
    assert [sample.references[0] for sample in load_list(listed, root)] == [
        root / "dog/00.png",
        root / "cat/00.png",
    ]

    different = write(root / "list.json", moved(DOG, "a/b"), moved(CAT, "a/c"))
    assert len(problems(different, root)) == 2

    one_missing = moved(DOG, "a/b") | {"mask": "a/b/dog/none.png"}
    (line,) = problems(write(root / "list.json", one_missing, moved(CAT, "a/b")), root)
    assert line == f"list.json, entry 1: {root}/dog/none.png: no such file or directory; check the path"
    with pytest.raises(DataError, match=r'looked up in .*, without the leading "a/b"\)\.$'):
        load_list(root / "list.json", root)


def test_every_problem_is_listed_at_once_with_its_line(root: Path):
    (root / "dog/half.jpg").write_bytes(b"no jpeg")
    file = write(
        root / "list.jsonl",
        DOG | {"id": "same"},
        '{"prompt": "a dog", "image_paths": ["dog/00.png"]',
        "",
        {"caption": "x", "image_paths": ["dog/none.png"]},
        DOG | {"prompt": "  "},
        DOG | {"prompt": 3},
        ["not", "an", "object"],
        {"prompt": "p"},
        {"prompt": "p", "image_paths": []},
        {"prompt": "p", "image_paths": "dog/00.png"},
        {"prompt": "p", "image_paths": ["dog/00.png", 1]},
        {"prompt": "p", "image_path": ["dog/00.png"]},
        DOG | {"image_path": "dog/00.png"},
        CAT | {"id": "same", "mask": ["cat/mask.png"]},
        CAT | {"other_views": ["dog/half.jpg"], "subject": 5, "class_word": ""},
        CAT | {"other_views": ["dog/none.png"], "id": 7},
    )
    found = problems(file)
    assert found == [
        'list.jsonl, lines 1, 14: id "same" is used more than once; groups are told apart by it',
        "list.jsonl, line 2: not JSON: Expecting ',' delimiter, column 50",
        "list.jsonl, line 4: has no prompt (fields: caption, image_paths)",
        f"list.jsonl, lines 4, 16: {root}/dog/none.png: no such file or directory; check the path",
        'list.jsonl, line 5: prompt must be a text and not empty, not "  "',
        "list.jsonl, line 6: prompt must be a text and not empty, not 3",
        'list.jsonl, line 7: must be an object with prompt and image_paths, not ["not", "an", "object"]',
        "list.jsonl, line 8: has no image_paths; list at least one picture of the subject",
        "list.jsonl, line 9: has no image_paths; list at least one picture of the subject",
        'list.jsonl, line 10: image_paths must be a list of paths, not "dog/00.png"',
        'list.jsonl, line 11: image_paths must be a list of paths, not ["dog/00.png", 1]',
        'list.jsonl, line 12: image_path must be a text and not empty, not ["dog/00.png"]',
        "list.jsonl, line 13: has both image_path and image_paths; keep one",
        'list.jsonl, line 14: mask must be a text and not empty, not ["cat/mask.png"]',
        "list.jsonl, line 15: subject must be a text and not empty, not 5",
        'list.jsonl, line 15: class_word must be a text and not empty, not ""',
        f"list.jsonl, line 15: {root}/dog/half.jpg: not a picture that Pillow can read; save it as PNG or "
        "JPEG, or leave it out",
        "list.jsonl, line 16: id must be a text and not empty, not 7",
    ]
    with pytest.raises(DataError) as caught:
        load_list(file)
    first, *lines, remedy = str(caught.value).split("\n")
    assert first == f"{file} cannot be used, 18 problems:"
    assert [line.strip() for line in lines] == found
    assert "Correct the list, or give another root" in remedy


def test_entries_of_an_array_are_counted_from_1(root: Path):
    assert problems(write(root / "list.json", DOG, "x", DOG | {"prompt": ""})) == [
        'list.json, entry 2: must be an object with prompt and image_paths, not "x"',
        'list.json, entry 3: prompt must be a text and not empty, not ""',
    ]


def test_the_message_shows_20_problems_and_counts_the_rest(root: Path):
    file = write(root / "list.json", *[DOG | {"prompt": ""}] * 25)
    with pytest.raises(DataError) as caught:
        load_list(file)
    lines = str(caught.value).split("\n")
    assert len(caught.value.problems) == 25
    assert len(lines) == 1 + 20 + 1 + 1
    assert lines[21] == "  and 5 more"


def test_a_missing_picture_is_told_once_however_many_samples_use_it(root: Path):
    file = write(root / "list.json", *[DOG | {"image_paths": ["dog/none.png"]}] * 25)
    (line,) = problems(file)
    assert line.startswith(f"list.json, entries 1, 2, 3 and 22 more: {root}/dog/none.png: no such file")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "list.json",
            b"[{},\n{]",
            "line 2: not JSON: Expecting property name enclosed in double quotes, column 2",
        ),
        ("list.json", b"", "line 1: not JSON: Expecting value, column 1"),
        ("list.json", b'{"a": 1}\n{"a": 2}', "line 2: not JSON: Extra data, column 1"),
        ("list.json", b'{"data": []}', 'must be an array, not {"data": []}'),
        ("list.json", b"[]", "holds no samples"),
        ("list.jsonl", b"\n\n", "holds no samples"),
        ("list.json", b'[\n"Stra\xdfe"]', "line 2: not UTF-8"),
        ("list.csv", b"prompt,image", "unknown ending '.csv'"),
    ],
)
def test_files_that_are_no_list(name: str, content: bytes, expected: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    assert problems(tmp_path / name) == [expected]


def test_a_list_that_does_not_exist(tmp_path: Path):
    assert problems(tmp_path / "none.json") == ["no such file"]


def test_names_that_no_file_can_have(root: Path):
    file = write(root / "list.json", DOG | {"image_paths": ["x" * 5000, "a\0b"]})
    assert len(problems(file)) == 2


def test_dreambench(dreambench: Path):
    samples = load_list(dreambench / "reference_list_750.json", dreambench)
    assert len(samples) == len({sample.id for sample in samples}) == 750
    assert (samples[0].id, samples[749].id) == ("00000", "00749")
    assert samples[0].prompt == "a backpack in the jungle"
    assert samples[0].references == (dreambench / "backpack" / "02.jpg",)
    per_subject = Counter(sample.subject for sample in samples)
    assert len(per_subject) == 30
    assert set(per_subject.values()) == {25}
    assert all(file.is_file() for sample in samples for file in sample.references if isinstance(file, Path))
    assert samples[0].reference_images()[0].size == (512, 512)


def test_dreambench_split(dreambench: Path):
    train, held_out = split_by_subject(load_list(dreambench / "reference_list_750.json"), 0.2, seed=0)
    assert (len(train), len(held_out)) == (24 * 25, 6 * 25)
    assert not {sample.subject for sample in train} & {sample.subject for sample in held_out}


def made(subjects: int, prompts: int) -> list[Sample]:
    picture = (Path("a.png"),)
    return [
        Sample(f"{subject}-{prompt}", f"subject {subject}", f"prompt {prompt}", picture)
        for subject in range(subjects)
        for prompt in range(prompts)
    ]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("subjects", [2, 3, 10, 31])
def test_split_divides_subjects(share: float, subjects: int):
    samples = made(subjects, 3)
    train, held_out = split_by_subject(samples, share, seed=0)
    held = {sample.subject for sample in held_out}
    assert len(held) == min(max(1, int(share * subjects + 0.5)), subjects - 1)
    assert [sample for sample in samples if sample.subject in held] == held_out  # whole subjects, order kept
    assert [sample for sample in samples if sample.subject not in held] == train


def test_split_does_not_depend_on_order_or_on_how_many_prompts():
    samples = made(10, 3)
    held = {sample.subject for sample in split_by_subject(samples, 0.3, seed=1)[1]}
    for other in (samples[::-1], samples[::2] + samples[1::2], made(10, 1)):
        assert {sample.subject for sample in split_by_subject(other, 0.3, seed=1)[1]} == held


def test_split_is_the_same_in_every_process_and_differs_by_seed():
    chosen = [{sample.subject for sample in split_by_subject(made(10, 1), 0.2, seed)[1]} for seed in range(200)]
    assert chosen[0] == {"subject 0", "subject 3"}  # as first computed: runs of years ago stay comparable
    # each of 10 subjects is held out in a fifth of the seeds: 40 +- 5.7 of 200
    counts = Counter(subject for held in chosen for subject in held)
    assert len(counts) == 10
    assert all(17 < count < 63 for count in counts.values())


def test_a_larger_share_holds_out_a_superset():
    held = [{s.id for s in split_by_subject(made(10, 2), share / 10, seed=3)[1]} for share in range(10)]
    assert all(small < large for small, large in pairwise(held))


def test_one_subject_is_divided_by_prompt_with_a_warning():
    samples = [*made(1, 10), Sample("again", "subject 0", "prompt 4", (Path("b.png"),))]
    with pytest.warns(UserWarning, match=r"all 11 samples are of one subject \(subject 0\): held out by prompt"):
        train, held_out = split_by_subject(samples, 0.2, seed=0)
    held = {sample.prompt for sample in held_out}
    assert len(held) == 2
    assert not held & {sample.prompt for sample in train}
    assert len(train) + len(held_out) == 11


def test_one_prompt_is_divided_by_sample_with_a_warning():
    samples = [Sample(name, "dog", "a dog", (Path("a.png"),)) for name in "abc"]
    with pytest.warns(UserWarning, match="held out by id"):
        train, held_out = split_by_subject(samples, 0.1, seed=0)
    assert (len(train), len(held_out)) == (2, 1)


def test_nothing_to_split():
    with warnings.catch_warnings(action="error"):
        assert split_by_subject(made(1, 5), 0, seed=0) == (made(1, 5), [])
        assert split_by_subject(made(1, 1), 0.5, seed=0) == (made(1, 1), [])
        assert split_by_subject([], 0.5, seed=0) == ([], [])


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_impossible_shares(share: float):
    with pytest.raises(ValueError, match=r"held_out_share = .* must be in \[0, 1\)"):
        split_by_subject(made(2, 2), share, seed=0)


def test_ids_must_differ_to_split():
    with pytest.raises(ValueError, match="share an id"):
        split_by_subject(made(2, 2) * 2, 0.5, seed=0)
