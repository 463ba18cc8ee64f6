import io
import random
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from customized_grpo.data import DataError
from customized_grpo.data.subjects200k import load_subjects200k
from customized_grpo.errors import UsageError

needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="the extra datasets is not installed")

GOOD = {"compositeStructure": 5, "objectConsistency": 5, "imageQuality": 5}
RED, BLUE, GREY = (250, 0, 0), (0, 0, 250), (128, 128, 128)


def composite(size: tuple[int, int] = (1056, 528)) -> bytes:
    """Red left and blue right, 512 pixels square, in a grey margin of 8, as the data's own loader cuts them."""
    image = Image.new("RGB", size, GREY)
    image.paste(RED, (8, 8, 520, 520))
    image.paste(BLUE, (528, 8, 1040, 520))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def row(item: str | None, **changes: Any) -> dict[str, Any]:
    return {
        "image": {"bytes": composite(), "path": None},
        "collection": "collection_1",
        "quality_assessment": GOOD,
        "description": {
            "item": item,
            "description_0": f"the {item} on a shelf",
            "description_1": f"the {item} in a workshop",
            "category": "Furniture",
            "description_valid": True,
        },
    } | changes


def write(file: Path, *rows: dict[str, Any]) -> Path:
    """Row groups of two rows."""
    file.parent.mkdir(exist_ok=True)
    table = import_module("pyarrow").Table.from_pylist(list(rows))
    import_module("pyarrow.parquet").write_table(table, file, row_group_size=2)
    return file


@needs_pyarrow
def test_the_second_picture_is_the_other_view_and_has_the_prompt(tmp_path: Path):
    write(tmp_path / "data/train-00000-of-00002.parquet", row("chair"), row("stool"), row("bench"))
    write(tmp_path / "data/train-00001-of-00002.parquet", row("lamp"))
    samples = load_subjects200k(tmp_path)
    assert [sample.id for sample in samples] == [
        *(f"train-00000-of-00002/{number:05d}" for number in range(3)),
        "train-00001-of-00002/00000",
    ]
    bench = samples[2]
    assert (bench.subject, bench.class_word, bench.prompt) == ("bench", "bench", "the bench in a workshop")
    assert bench.extra == {"collection": "collection_1", "category": "Furniture"}
    for (picture,), colour in ((bench.reference_images(), RED), (bench.other_view_images(), BLUE)):
        assert picture.size == (512, 512)
        assert (np.asarray(picture) == colour).all()
    assert bench.prompt_picture == bench.other_views[0]


@needs_pyarrow
def test_root_may_be_the_folder_of_the_tables(tmp_path: Path):
    write(tmp_path / "data/train-00000-of-00001.parquet", row("chair"))
    assert len(load_subjects200k(tmp_path / "data")) == 1


@needs_pyarrow
def test_pairs_with_low_scores_or_invalid_descriptions_are_skipped(tmp_path: Path):
    rows = [
        row("chair", quality_assessment=GOOD | {"imageQuality": 4}),
        row("stool", quality_assessment=None),
        row("bench", description=row("bench")["description"] | {"description_valid": False}),
        row("lamp"),
    ]
    write(tmp_path / "train-0.parquet", *rows)
    assert [sample.id for sample in load_subjects200k(tmp_path)] == ["train-0/00003"]


@needs_pyarrow
def test_pictures_in_tables_are_hashable_and_name_their_location(tmp_path: Path):
    file = write(tmp_path / "train-0.parquet", row("chair"), row("stool"))
    sample = load_subjects200k(tmp_path)[1]
    assert sample.references == load_subjects200k(tmp_path)[1].references
    assert hash(sample.references[0]) != hash(sample.other_views[0])
    assert str(sample.references[0]) == f"{file}, row 2, left picture"


@needs_pyarrow
def test_every_problem_of_every_table_is_listed_at_once(tmp_path: Path, problems: Callable[..., list[str]]):
    small = {"bytes": composite((600, 528)), "path": None}
    write(
        tmp_path / "a.parquet",
        row(None),
        row("chair", image={"bytes": b"no picture", "path": None}),
        row("stool", image=small),
        row("lamp"),
    )
    (tmp_path / "b.parquet").write_bytes(b"no table")
    write(tmp_path / "c.parquet", {"image": row("x")["image"], "caption": "x"})
    found = problems(load_subjects200k, tmp_path)
    assert found[:1] == [
        "a.parquet, row 1: has no item (fields: description_0, description_1, category, description_valid)"
    ]
    assert found[1].startswith("b.parquet: not a readable Parquet table: ")
    assert found[2:] == [
        "c.parquet: no column collection, quality_assessment, description (columns: image, caption)",
        f"{tmp_path}/a.parquet, row 2: not a picture that Pillow can read; save it as PNG or JPEG, or leave it out",
        f"{tmp_path}/a.parquet, row 3: cannot be read (600 x 528 pixels, not two pictures of 512 side by side); "
        "save it again as 8-bit PNG or JPEG, or leave it out",
    ]


@needs_pyarrow
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"image": "a.png"}, "column image has no field bytes (type: string)"),
        ({"quality_assessment": 5}, "column quality_assessment has no field compositeStructure, objectConsistency, "),
        ({"description": ["a chair"]}, "column description has no field item, description_1 (type: list<"),
        ({"quality_assessment": dict.fromkeys(GOOD, "5")}, "no row with compositeStructure, objectConsistency, "),
        ({"image": {"bytes": None, "path": "a.png"}}, "train-0.parquet, row 1: not a picture that Pillow can read; "),
    ],
)
def test_columns_of_other_types(
    changes: dict[str, Any], problem: str, tmp_path: Path, problems: Callable[..., list[str]]
):
    write(tmp_path / "train-0.parquet", row("chair", **changes))
    (line,) = problems(load_subjects200k, tmp_path)
    assert problem in line


@needs_pyarrow
def test_a_damaged_table_loads_or_is_refused(tmp_path: Path):
    """Random bytes of the footer, which describes the columns, are changed."""
    pick = random.Random(0)
    intact = write(tmp_path / "intact", row("chair")).read_bytes()
    refused = 0
    for number in range(60):
        content = bytearray(intact)
        for _ in range(3):
            content[pick.randrange(len(content) - 1500, len(content))] = pick.randrange(256)
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.parquet").write_bytes(content)
        try:
            load_subjects200k(tmp_path / str(number))
        except DataError:
            refused += 1
    assert refused > 20


@needs_pyarrow
def test_a_folder_without_tables(tmp_path: Path):
    with pytest.raises(DataError, match=r"(?s)no \*\.parquet or data/\*\.parquet.*Yuanshi/Subjects200K"):
        load_subjects200k(tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("customized_grpo.data.subjects200k.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"subjects200k needs pyarrow; pip install \"customized-grpo\[datasets\]\""):
        load_subjects200k(tmp_path)
