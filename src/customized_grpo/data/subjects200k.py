"""Subjects200K (arXiv 2411.15098): generated pairs of pictures that show one subject in two scenes.

The format is taken from https://github.com/Yuanshi9815/Subjects200K (README.md, src/dataset.py) and the card of
huggingface.co/datasets/Yuanshi/Subjects200K, which publishes Parquet tables `data/train-*.parquet`. A row has
`image` (both pictures side by side, with a margin), `quality_assessment` {compositeStructure, objectConsistency,
imageQuality: 0 to 5, or null}, `description` {item, description_0, description_1, category, description_valid} and
`collection`. The tables are read with pyarrow, the extra `datasets`.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from customized_grpo.data.checks import check_ids, check_pictures
from customized_grpo.data.entries import Entry
from customized_grpo.data.findings import DataError, Findings, Place
from customized_grpo.data.images import open_bytes
from customized_grpo.data.reading import list_folder
from customized_grpo.data.sample import Sample
from customized_grpo.errors import UsageError
from customized_grpo.files.paths import why

_SCORES = ("compositeStructure", "objectConsistency", "imageQuality")
_COLUMNS = {  # and the fields that are read of each
    "image": ("bytes",),
    "collection": (),
    "quality_assessment": _SCORES,
    "description": ("item", "description_1"),
}
_TABLES = ("*.parquet", "data/*.parquet")
_DOWNLOAD = "data.root is a download of huggingface.co/datasets/Yuanshi/Subjects200K."


@dataclass(frozen=True)
class Pair:
    """The composite picture of one row; rows are counted from 0."""

    file: Path
    row: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.row + 1}"

    def open_image(self) -> Image.Image:
        """The picture, not decoded yet. Raises ValueError if it is not two pictures side by side."""
        image = open_bytes(_stored(self.file, self.row))
        _boxes(*image.size)
        return image

    def content(self) -> bytes:
        return _stored(self.file, self.row)


@dataclass(frozen=True)
class Half:
    """One picture of a pair: 0 the left, 1 the right one, without the margin."""

    pair: Pair
    side: int

    def __str__(self) -> str:
        return f"{self.pair}, {('left', 'right')[self.side]} picture"

    def open_image(self) -> Image.Image:
        image = self.pair.open_image()
        return image.crop(_boxes(*image.size)[self.side])

    def content(self) -> bytes:
        return self.pair.content() + bytes([self.side])


def load_subjects200k(root: Path) -> list[Sample]:
    """One sample per good pair: the left picture is the reference; the right one, which the prompt describes, is the
    other view.

    A pair is good by the criterion of the data's own README: all three scores are 5, and the description is not marked
    invalid. Other rows are skipped. `description.item` is subject and class word. Ids are table and row,
    "train-00000-of-.../00012".

    root  the download or its folder `data`; a subset of the tables is enough

    Raises:
        UsageError: pyarrow is missing.
        DataError: all problems of the tables at once.
    """
    if find_spec("pyarrow") is None:
        raise UsageError('data.source=subjects200k needs pyarrow; pip install "customized-grpo[datasets]"')
    list_folder(root, _DOWNLOAD)  # raises if root itself is the problem
    files = next((files for pattern in _TABLES if (files := sorted(root.glob(pattern)))), [])
    if not files:
        raise DataError(root, [f"no {' or '.join(_TABLES)}"], _DOWNLOAD)
    findings = Findings(root)
    samples = [sample for file in files for sample in _samples(file, findings)]
    if not samples and not findings:
        findings.add([], f"no row with {', '.join(_SCORES)} of 5")
    check_ids(((place, sample.id) for place, sample in samples), findings)
    check_pictures(((None, Pair(place.file, place.number - 1)) for place, _ in samples), findings)
    findings.raise_if_any("Download the tables named here again, or remove them.")
    return [sample for _, sample in samples]


def _samples(file: Path, findings: Findings) -> Iterator[tuple[Place, Sample]]:
    try:
        table = _table(file)
        if problem := _column_problem(table.schema_arrow):
            findings.add([], f"{file.name}: {problem}")
            return
        rows = table.read(columns=[name for name in _COLUMNS if name != "image"]).to_pylist()
    except (OSError, ValueError, import_module("pyarrow").ArrowException) as error:
        findings.add([], f"{file.name}: not a readable Parquet table: {why(error)}")
        return
    for row, values in enumerate(rows):
        description = values["description"] or {}
        if not _good(values["quality_assessment"]) or description.get("description_valid") is False:
            continue
        entry = Entry(Place(file, row + 1, "row"), description, findings)
        item, prompt = entry.required_text("item"), entry.required_text("description_1")
        pair = Pair(file, row)
        sample = Sample(
            id=f"{file.stem}/{row:05d}",
            subject=item,
            prompt=prompt,
            references=(Half(pair, 0),),
            other_views=(Half(pair, 1),),
            prompt_picture=Half(pair, 1),
            class_word=item,
            extra={"collection": values["collection"], "category": description.get("category")},
        )
        yield entry.place, sample


def _column_problem(schema: Any) -> str | None:
    """What a table lacks of the columns and fields that are read."""
    columns = {column.name: column.type for column in schema}
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        return f"no column {', '.join(missing)} (columns: {', '.join(columns)})"
    is_struct = import_module("pyarrow").types.is_struct
    for name, fields in _COLUMNS.items():
        present = [field.name for field in columns[name]] if is_struct(columns[name]) else []
        if lacking := [field for field in fields if field not in present]:
            return f"column {name} has no field {', '.join(lacking)} (type: {columns[name]})"
    return None


def _good(scores: dict[str, Any] | None) -> bool:
    return scores is not None and all(isinstance(scores[name], int | float) and scores[name] >= 5 for name in _SCORES)


def _boxes(width: int, height: int) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """The boxes of both pictures, as the data's own loader crops them: 512 (or 1024) pixels square; half of the
    remaining height is the margin above and below, and to the left and right of each picture."""
    side = 1024 if height >= 1024 else 512
    margin = (height - side) // 2
    if height < side or width < 2 * (side + margin):
        raise ValueError(f"{width} x {height} pixels, not two pictures of {side} side by side")
    right = side + 2 * margin
    return (margin, margin, margin + side, margin + side), (right, margin, right + side, margin + side)


def _table(file: Path) -> Any:
    return import_module("pyarrow.parquet").ParquetFile(file)


def _stored(file: Path, row: int) -> bytes:
    starts = _starts(file)
    group = bisect_right(starts, row) - 1
    image = _group(file, group)[row - starts[group]]
    return (image["bytes"] or b"") if image else b""  # null: opening it reports that it is not a picture


@cache
def _starts(file: Path) -> list[int]:
    """The first row of each row group."""
    metadata = _table(file).metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return [0, *accumulate(sizes[:-1])]


@lru_cache(maxsize=2)  # a group, often of 100 rows, can only be read as a whole; the check reads row by row
def _group(file: Path, group: int) -> list[dict[str, Any] | None]:
    return _table(file).read_row_group(group, columns=["image"]).column("image").to_pylist()
