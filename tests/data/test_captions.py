"""Captions beside the pictures, and those of a metadata.csv."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from customized_grpo.data import Sample, load_data
from customized_grpo.data.captions import load_captions
from customized_grpo.data.lists import load_imagefolder
from customized_grpo.errors import UsageError

Problems = Callable[..., list[str]]


@pytest.fixture
def write(draw: Callable[..., Path]) -> Callable[[Mapping[str, str | bytes]], Path]:
    """Text and other files below the temporary folder; "" after the name of a picture draws it."""

    def write(files: Mapping[str, str | bytes]) -> Path:
        for name, content in files.items():
            if name.endswith((".jpg", ".png")):
                draw(name)
            else:
                (draw() / name).parent.mkdir(parents=True, exist_ok=True)
                (draw() / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return draw()

    return write


def load(source: object, root: Path | None = None) -> list[Sample]:
    return load_data(str(source), root=root, class_word=None, held_out_share=0, seed=0)[0]


KOHYA: Mapping[str, str | bytes] = {
    "10_rex dog/a.jpg": "",
    "10_rex dog/a.txt": "\ufeffa rex dog\r\non grass\u2028and moss\x0c\r\n",
    "10_rex dog/a_sdxl.npz": b"a cache",
    "10_rex dog/b.png": "",
    "10_rex dog/b.caption": "a rex dog in bed",
    "10_mug/c.jpg": "",
    "10_mug/c.TXT": "a mug",
}


def test_a_picture_its_caption_and_the_other_pictures_of_its_folder(write: Callable[..., Path]):
    root = write(KOHYA)
    mug, a, b = load_captions(root)
    assert a == Sample(
        id="10_rex dog/a.jpg",
        subject="rex dog",
        prompt="a rex dog on grass\u2028and moss",
        references=(root / "10_rex dog/a.jpg",),
        other_views=(root / "10_rex dog/b.png",),
        prompt_picture=root / "10_rex dog/a.jpg",  # which its caption describes
    )
    assert (b.prompt, b.other_views) == ("a rex dog in bed", a.references)
    assert (mug.subject, mug.prompt, mug.other_views) == ("mug", "a mug", ())


def test_a_folder_alone_its_parent_and_the_name_of_the_layout(write: Callable[..., Path]):
    root = write(KOHYA)
    assert load(root) == load("captions", root) == load_captions(root)
    assert [sample.id for sample in load(root / "10_rex dog")] == ["a.jpg", "b.png"]
    assert {sample.subject for sample in load(root / "10_rex dog")} == {"rex dog"}


def test_different_repeats_are_one_subject_and_warned_of(write: Callable[..., Path]):
    root = write({**KOHYA, "5_rex dog/d.jpg": "", "5_rex dog/d.txt": "a rex dog"})
    with pytest.warns(
        UserWarning, match=r"repeats .* \(10_mug, 10_rex dog, 5_rex dog\) are not used: .* same name .* one subject"
    ):
        samples = load_captions(root)
    assert [len(sample.other_views) for sample in samples if sample.subject == "rex dog"] == [2, 2, 2]


def test_a_caption_whose_name_is_composed_of_other_characters(write: Callable[..., Path]):
    (sample,) = load(write({"cafe\u0301.jpg": "", "caf\xe9.txt": "a cup"}))
    assert sample.prompt == "a cup"


def test_all_that_is_wrong_with_captions(write: Callable[..., Path], problems: Problems):
    root = write(
        {
            **KOHYA,
            "10_mug/c.jpg": "",
            "10_mug/deep/d.jpg": "",
            "10_mug/e.jpg": "",
            "10_mug/e.png": "",
            "10_mug/e.txt": "which of both",
            "10_mug/f.jpg": "",
            "10_mug/f.caption": "f",
            "10_mug/f.txt": "f",
            "10_mug/g.jpg": "",
            "10_mug/h.jpg": "",
            "10_mug/h.txt": " \n",
            "10_mug/i.jpg": "",
            "10_mug/i.txt": "Straße".encode("latin-1"),
            "10_mug/j.jpg": "",
            "10_mug/j.txt": "a\0b",
            "10_mug/notes.md": "text",
            "prompts.txt": "no picture",
        }
    )
    mug = f"{root}/10_mug"
    assert problems(load_captions, root) == [
        f"{mug}/deep: is a folder in a folder; name {mug} itself",
        f"{mug}/notes.md: not a picture that Pillow can read; save it as PNG or JPEG, or leave it out",
        f"{root}/prompts.txt: a caption without its picture",
        f"{mug}: e.jpg and e.png are pictures with one caption; rename one",
        f"{mug}: f.caption and f.txt are captions of one picture; keep one",
        f"{mug}/g.jpg: has no caption; write it into g.txt beside it",
        f"{mug}/h.txt: is empty; write what the picture shows",
        f"{mug}/i.txt: line 1: not UTF-8",
        f'{mug}/j.txt: "a\\u0000b" has a NUL character (\\u0000); remove it',
    ]


def test_folders_without_captions(write: Callable[..., Path], problems: Problems):
    assert problems(load_captions, write({})) == ["holds no pictures with captions"]
    assert problems(load_captions, write({"a.jpg": ""})) == [
        f"{write({})}/a.jpg: has no caption; write it into a.txt beside it"
    ]
    assert problems(load_captions, write({}) / "none") == ["no such file or directory"]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_captions_beside_a_metadata_file_are_read_if_they_are_asked_for(name: str, write: Callable[..., Path]):
    lines = {
        "metadata.jsonl": '{"file_name": "a.jpg", "text": "of the file"}',
        "metadata.csv": "file_name,text\na.jpg,of the file",
    }
    root = write({"a.jpg": "", "a.txt": "beside it", name: lines[name]})
    with pytest.warns(UserWarning, match=f"{name} is not read, because data.source=captions asks"):
        assert [sample.prompt for sample in load("captions", root)] == ["beside it"]
    with pytest.warns(UserWarning, match=f"{name} describes the pictures, so the text files beside them are not read"):
        assert [sample.prompt for sample in load(root)] == ["of the file"]
    assert [sample.prompt for sample in load("imagefolder", root)] == ["of the file"]


def test_a_folder_whose_data_are_one_folder_deeper_names_it(write: Callable[..., Path]):
    root = write({"set/train/metadata.csv": TABLE, "kohya/img/10_rex/a.jpg": "", "kohya/img/10_rex/a.txt": "a dog"})
    (root / "tables").mkdir()
    (root / "tables" / "train-0.parquet").write_bytes(b"PAR1")
    for folder, told in (
        ("set", "has neither metadata.jsonl nor captions, but its folder train has; name .*/set/train$"),
        ("kohya", "its folder img has; name .*/kohya/img$"),
        ("tables", r"holds Parquet tables \(train-0.parquet\); data.source=subjects200k reads"),
    ):
        with pytest.raises(UsageError, match=told):
            load(root / folder)


# --- metadata.csv ----------------------------------------------------------------------------------------------------

TABLE = (
    '\ufefffile_name,text,subject,note\r\nx/a.jpg,"a ""big"" dog, on\r\ngrass",rex,1\r\n\r\nb.jpg,a mug\u2028,,\r\n'
)


def test_a_table(write: Callable[..., Path]):
    root = write({"x/a.jpg": "", "b.jpg": "", "metadata.csv": TABLE})
    first, second = load_imagefolder(root)
    assert first == Sample("00000", "rex", 'a "big" dog, on\r\ngrass', (root / "x/a.jpg",), extra={"note": "1"})
    assert second == Sample("00001", root.name, "a mug\u2028", (root / "b.jpg",))
    for source, folder in ((root, None), (root / "metadata.csv", None), ("captions", root), ("imagefolder", root)):
        assert load(source, folder) == [first, second]


def test_other_views_in_a_table(write: Callable[..., Path]):
    table = 'file_name,text,other_views\na.jpg,A,b.jpg\nb.jpg,B,"[""a.jpg"", ""c.jpg""]"\n'
    root = write({"a.jpg": "", "b.jpg": "", "c.jpg": "", "metadata.csv": table})
    views = [[view.name for view in s.other_views if isinstance(view, Path)] for s in load_imagefolder(root)]
    assert views == [["b.jpg"], ["a.jpg", "c.jpg"]]


def test_pictures_that_the_table_does_not_name_are_told(write: Callable[[Mapping[str, str]], Path]):
    table = "file_name,text,other_views\r\na.jpg,a dog,x/b.jpg\r\n"
    root = write({"a.jpg": "", "x/b.jpg": "", "x/c.jpg": "", "notes.txt": "", "d.JPG": "", "metadata.csv": table})
    with pytest.warns(UserWarning, match=r"metadata\.csv does not name are left out: d\.JPG, x/c\.jpg$"):
        assert len(load_imagefolder(root)) == 1


COLUMNS = "there are 2 columns (file_name, text), and"
LINE = "metadata.csv, line"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            "file_name,text\na.jpg,a dog, on grass\n",
            [f"{LINE} 2: {COLUMNS} 3 in this row; put a text with commas in quotes"],
        ),
        ("file_name,text\na.jpg\n", [f"{LINE} 2: {COLUMNS} 1 in this row; put a text with commas in quotes"]),
        (
            'file_name,text\na.jpg,"two\nlines"\na.jpg,\n,b\n',
            [
                f"{LINE} 4: has no text (fields: file_name)",
                f"{LINE} 5: has no file_name; list at least one picture of the subject",
            ],
        ),
        ("file_name;text\na.jpg;b\n", ['line 1: "file_name;text" is one column; separate columns by commas']),
        ('file_name,text\na.jpg,"b\n', ["line 2: not CSV: unexpected end of data"]),
        ("file_name,text,text\n", ['line 1: two columns are called "text"']),
        ("file_name,text\n", ["holds no samples"]),
        ("", ["holds no samples"]),
    ],
)
def test_tables_that_cannot_be_used(table: str, expected: list[str], write: Callable[..., Path], problems: Problems):
    assert problems(load_imagefolder, write({"a.jpg": "", "metadata.csv": table})) == expected


def test_both_tables(write: Callable[..., Path], problems: Problems):
    root = write({"metadata.csv": "", "metadata.jsonl": ""})
    assert problems(load_imagefolder, root) == ["both metadata.jsonl and metadata.csv; keep one"]
