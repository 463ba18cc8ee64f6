"""Digests of samples: whether the data is still what it was."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from PIL import Image

from customized_grpo.data.images import PictureError, Source, Stored
from customized_grpo.data.sample import Sample
from customized_grpo.files.durable import digest
from customized_grpo.files.paths import display, why

_LENGTH = 16  # hexadecimal characters: 64 bits tell any number of samples apart


@dataclass(frozen=True)
class SampleDigest:
    """What a sample says and what it shows. Its id and the paths of its pictures have no part in it."""

    text: str  # of subject, prompt, class word and extra fields
    pictures: str  # of the content of references, other views and mask

    def __str__(self) -> str:
        return f"{self.text} {self.pictures}"


def digests(samples: Sequence[Sample]) -> dict[str, SampleDigest]:
    """The digest of each sample by its id. Each picture is read once.

    Raises PictureError if one cannot be read.
    """
    files = {picture for sample in samples for part in _parts(sample) for picture in part if _is_stored(picture)}
    ordered = sorted(files, key=lambda picture: _in_order(str(picture)))  # tables are read in whole groups of rows
    contents = {picture: _content(picture) for picture in ordered}

    def content(picture: Source) -> str:
        return contents[picture] if _is_stored(picture) else _content(picture)

    return {
        sample.id: SampleDigest(
            text=_digest([sample.subject, sample.prompt, sample.class_word, dict(sample.extra)]),
            pictures=_digest([[content(picture) for picture in part] for part in _parts(sample)]),
        )
        for sample in samples
    }


def _parts(sample: Sample) -> tuple[Sequence[Source], ...]:
    return sample.references, sample.other_views, () if sample.mask is None else (sample.mask,)


def _is_stored(picture: Source) -> TypeGuard[Path | Stored]:
    return not isinstance(picture, Image.Image)


def _in_order(text: str) -> list[tuple[int, str]]:
    """Sorts "row 2" before "row 10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _content(picture: Source) -> str:
    if isinstance(picture, Image.Image):
        return hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes()).hexdigest()
    try:
        return digest(picture) if isinstance(picture, Path) else hashlib.sha256(picture.content()).hexdigest()
    except (OSError, ValueError) as error:
        raise PictureError(f"{display(picture)}: {why(error)}; check the path") from error


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]
