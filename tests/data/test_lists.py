import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.data import DataError, Sample, load_list
from customized_grpo.data.lists import load_imagefolder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    colours = {"dog/00.png": "red", "dog/01.png": "green", "cat/00.png": "blue", "cat/mask.png": "white"}
    for name, colour in colours.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3), colour).save(file)
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
        'up.json, entry 1: "../00.png" leads out of ., the folder of the pictures; '
        "set data.root to a folder above both"
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
    with pytest.raises(DataError, match=r'searched in .*, without the leading "a/b"\)\.$'):
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
    lines = problems(file)
    assert lines == [
        'list.jsonl, lines 1, 14: id "same" is used more than once; give each sample its own',
        "list.jsonl, line 2: not JSON: Expecting ',' delimiter, column 50",
        "list.jsonl, line 4: has no prompt (fields: caption, image_paths)",
        f"list.jsonl, lines 4, 16: {root}/dog/none.png: no such file or directory; check the path",
        'list.jsonl, line 5: prompt must be a non-empty text, not "  "',
        "list.jsonl, line 6: prompt must be a non-empty text, not 3",
        'list.jsonl, line 7: must be an object with prompt and image_paths, not ["not", "an", "object"]',
        "list.jsonl, line 8: has no image_paths; list at least one picture of the subject",
        "list.jsonl, line 9: has no image_paths; list at least one picture of the subject",
        'list.jsonl, line 10: image_paths must be a list of paths, not "dog/00.png"',
        'list.jsonl, line 11: image_paths must be a list of paths, not ["dog/00.png", 1]',
        'list.jsonl, line 12: image_path must be a non-empty text, not ["dog/00.png"]',
        "list.jsonl, line 13: has both image_path and image_paths; keep one",
        'list.jsonl, line 14: mask must be a non-empty text, not ["cat/mask.png"]',
        "list.jsonl, line 15: subject must be a non-empty text, not 5",
        'list.jsonl, line 15: class_word must be a non-empty text, not ""',
        f"list.jsonl, line 15: {root}/dog/half.jpg: not a picture that Pillow can read; save it as PNG or "
        "JPEG, or leave it out",
        "list.jsonl, line 16: id must be a non-empty text, not 7",
    ]
    with pytest.raises(DataError) as caught:
        load_list(file)
    first, *shown, remedy = str(caught.value).split("\n")
    assert first == f"{file} cannot be used, 18 problems:"
    assert [line.strip() for line in shown] == lines
    assert "Correct the list, or set another root" in remedy


def test_entries_of_an_array_are_counted_from_1(root: Path):
    assert problems(write(root / "list.json", DOG, "x", DOG | {"prompt": ""})) == [
        'list.json, entry 2: must be an object with prompt and image_paths, not "x"',
        'list.json, entry 3: prompt must be a non-empty text, not ""',
    ]


def test_the_message_shows_20_problems_and_counts_the_rest(root: Path):
    file = write(root / "list.json", *[DOG | {"prompt": ""}] * 25)
    with pytest.raises(DataError) as caught:
        load_list(file)
    lines = str(caught.value).split("\n")
    assert len(caught.value.problems) == 25
    assert len(lines) == 1 + 20 + 1 + 1
    assert lines[21] == "  and 5 more"


def test_a_missing_picture_is_reported_once_for_all_its_samples(root: Path):
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
def test_files_that_are_not_lists(name: str, content: bytes, expected: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    assert problems(tmp_path / name) == [expected]


def test_a_list_that_does_not_exist(tmp_path: Path):
    assert problems(tmp_path / "none.json") == ["no such file or directory"]


def test_names_that_no_file_can_have(root: Path):
    file = write(root / "list.json", DOG | {"image_paths": ["x" * 5000, "a\0b"]})
    assert len(problems(file)) == 2


COMPOSED, DECOMPOSED = "caf\xe9", "cafe\u0301"


@pytest.mark.parametrize(("listed", "stored"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_names_composed_of_other_characters_are_found(listed: str, stored: str, draw: Callable[..., Path]):
    """Of folders and files; a Mac writes é as e and an accent."""
    root = draw(f"{stored}/{stored}.png", f"{stored}/b.png")
    entry = {"prompt": "p", "image_path": f"{listed}/{listed}.png", "other_views": [f"{listed}/b.png"]}
    (sample,) = load_list(write(root / "list.json", entry))
    assert sample.references == (root / stored / f"{stored}.png",)
    assert sample.other_views == (root / stored / "b.png",)


def test_names_that_look_the_same_are_warned_of_and_taken_as_listed(draw: Callable[..., Path]):
    root = draw(f"{COMPOSED}.png", f"{DECOMPOSED}.png")
    entries = [{"prompt": "p", "image_path": f"{name}.png", "subject": name} for name in (DECOMPOSED, COMPOSED)]
    with pytest.warns(UserWarning, match=r"holds 'cafe\\u0301\.png' and 'caf\\xe9\.png', which look the same"):
        samples = load_list(write(root / "list.json", *entries))
    assert [sample.references for sample in samples] == [(root / f"{n}.png",) for n in (DECOMPOSED, COMPOSED)]


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


# --- imagefolder -----------------------------------------------------------------------------------------------------


def imagefolder(root: Path, *items: object) -> Path:
    (root / "metadata.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return root


def test_a_line_is_a_sample(draw: Callable[..., Path]):
    root = draw("dog/0.png", "dog/1.png", "cat/0.png")
    samples = load_imagefolder(
        imagefolder(
            root,
            {"file_name": "dog/0.png", "text": "a dog in a boat", "other_views": ["dog/1.png"], "score": 3},
            {"file_name": "cat/0.png", "prompt": "a cat in a boat", "class_word": "cat"},
        )
    )
    assert samples[0] == Sample(
        id="00000",
        subject="dog",
        prompt="a dog in a boat",
        references=(root / "dog/0.png",),
        other_views=(root / "dog/1.png",),
        extra={"score": 3},
    )
    assert (samples[1].prompt, samples[1].subject, samples[1].class_word) == ("a cat in a boat", "cat", "cat")


def test_problems_name_the_fields_as_the_file_does(draw: Callable[..., Path], problems: Callable[..., list[str]]):
    root = imagefolder(
        draw("0.png"),
        {"text": "no picture"},
        {"file_name": "0.png"},
        {"file_name": "0.png", "text": 5},
        {"file_name": "0.png", "text": "a", "prompt": "b"},
        {"file_name": "none.png", "text": "a"},
    )
    assert problems(load_imagefolder, root) == [
        "metadata.jsonl, line 1: has no file_name; list at least one picture of the subject",
        "metadata.jsonl, line 2: has no text (fields: file_name)",
        "metadata.jsonl, line 3: text must be a non-empty text, not 5",
        "metadata.jsonl, line 4: has both prompt and text; keep one",
        f"metadata.jsonl, line 5: {root}/none.png: no such file or directory; check the path",
    ]


def test_a_folder_without_metadata(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r'(?s)no metadata\.jsonl.*\{"file_name": \.\.\., "text": \.\.\.\} per picture'
    ):
        load_imagefolder(tmp_path)
