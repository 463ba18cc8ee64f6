"""Subjects200K (arXiv 2411.15098): generated pairs of pictures that show one subject in two scenes.

Read from https://github.com/Yuanshi9815/Subjects200K (README.md, src/dataset.py) and the card of
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
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from customized_grpo.data.entries import Entry
from customized_grpo.data.findings import DataError, Findings, Place, check_ids, check_pictures
from customized_grpo.data.sample import Sample

_COLUMNS = ("image", "collection", "quality_assessment", "description")
_SCORES = ("compositeStructure", "objectConsistency", "imageQuality")
_TABLES = ("*.parquet", "data/*.parquet")


@dataclass(frozen=True)
class Pair:
    """The composite picture of one row; rows count from 0."""

    file: Path
    row: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.row + 1}"

    def open_image(self) -> Image.Image:
        """Not decoded yet. Raises: ValueError, if these are not two pictures side by side."""
        image = Image.open(BytesIO(_stored(self.file, self.row)))
        _boxes(*image.size)
        return image


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


def load_subjects200k(root: Path) -> list[Sample]:
    """A sample per good pair: the left picture is the reference, the right one, which the prompt describes, the other
    view.

    Good is what the data's own README takes: all three scores 5, and no description marked invalid. Other rows are
    left out. `description.item` is subject and class word. Ids are table and row, "train-00000-of-.../00012".

    root  the download, or its folder `data`; some of the tables will do

    Raises:
        DataError: pyarrow is missing, or everything wrong with the tables at once.
    """
    if find_spec("pyarrow") is None:
        remedy = 'pip install "customized-grpo[datasets]"'
        raise DataError(root, ["Subjects200K is published as Parquet, and pyarrow is not installed"], remedy)
    files = next((found for pattern in _TABLES if (found := sorted(root.glob(pattern)))), [])
    if not files:
        problem = f"no {' or '.join(_TABLES)}" if root.is_dir() else "no such folder"
        raise DataError(root, [problem], "data.root is a download of huggingface.co/datasets/Yuanshi/Subjects200K.")
    findings = Findings(root)
    samples = [found for file in files for found in _samples(file, findings)]
    if not samples and not findings:
        findings.add([], f"no row with {', '.join(_SCORES)} of 5")
    check_ids(((place, sample.id) for place, sample in samples), findings)
    check_pictures(((None, Pair(place.file, place.number - 1)) for place, _ in samples), findings)
    findings.raise_if_any("Download the tables named here again, or leave them out.")
    return [sample for _, sample in samples]


def _samples(file: Path, findings: Findings) -> Iterator[tuple[Place, Sample]]:
    try:
        table = _table(file)
    except ValueError as error:  # pyarrow's for what is no Parquet; the other tables are told of as well
        findings.add([], f"{file.name}: not Parquet: {' '.join(str(error).split())}")
        return
    missing = [name for name in _COLUMNS if name not in table.schema_arrow.names]
    if missing:
        findings.add(
            [], f"{file.name}: no column {', '.join(missing)} (columns: {', '.join(table.schema_arrow.names)})"
        )
        return
    for row, values in enumerate(table.read(columns=list(_COLUMNS[1:])).to_pylist()):
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
            class_word=item,
            extra={"collection": values["collection"], "category": description.get("category")},
        )
        yield entry.place, sample


def _good(scores: dict[str, Any] | None) -> bool:
    return scores is not None and all((scores.get(name) or 0) >= 5 for name in _SCORES)


def _boxes(width: int, height: int) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Where the pictures are, as the data's own loader cuts them: 512 (or 1024) pixels square, what is left of the
    height half above and half below, and as much before each picture."""
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
    return _group(file, group)[row - starts[group]]["bytes"] or b""


@cache
def _starts(file: Path) -> list[int]:
    """The first row of each row group."""
    metadata = _table(file).metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return [0, *accumulate(sizes[:-1])]


@lru_cache(maxsize=2)  # a group, often of 100 rows, can only be read as a whole; the check goes row by row
def _group(file: Path, group: int) -> list[dict[str, Any]]:
    return _table(file).read_row_group(group, columns=["image"]).column("image").to_pylist()
