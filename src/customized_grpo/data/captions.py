"""Pictures with a caption each, in a text file of the same name, as kohya's scripts and others train on them.

`10_rex dog/a.jpg` has its caption in `10_rex dog/a.txt` or `a.caption`; folders may begin with a number of repeats.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

from customized_grpo.data.checks import check_pictures
from customized_grpo.data.copies import without_copies
from customized_grpo.data.findings import DataError, Findings, show
from customized_grpo.data.images import Source
from customized_grpo.data.lists import METADATA, load_imagefolder, metadata_of
from customized_grpo.data.reading import list_folder, read_lines
from customized_grpo.data.sample import Sample
from customized_grpo.data.subjects import name_of
from customized_grpo.files.paths import display, is_folder
from customized_grpo.files.text import flaw_of

_CAPTIONS = (".txt", ".caption")
_CACHES = (".npz", ".safetensors")  # encoded pictures, which trainers leave beside them
_REPEATS = re.compile(r"(\d+)_(?=.)")
_NEEDS = (
    "Each picture needs a caption in UTF-8 in a text file of the same name, such as a.txt for a.jpg; to use the "
    "built-in prompts instead, keep only photographs there."
)


@dataclass
class _Files:
    """The files of one name in one folder."""

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    captions: list[Path] = field(default_factory=list)


def has_captions(root: Path) -> bool:
    """Whether a picture in this folder, or in a folder in it, has a text file of its name. Raises DataError."""
    return any(files.pictures and files.captions for folder in _folders(root) for files in _by_name(folder))


def load_captions(root: Path) -> list[Sample]:
    """One sample per picture of a folder and of the folders in it: the picture is the reference, its caption the
    prompt. An imagefolder without such captions is read as one.

    The subject is the name of the folder without its number of repeats, which is not used; the other pictures of the
    subject are the other views. A caption of several lines is one text. Ids: "10_rex dog/a.jpg".

    Raises:
        DataError: all problems of the files at once; a picture without a caption and a caption without its picture
            are problems too.
    """
    contents = list_folder(root)  # raises if root itself is the problem
    if unread := metadata_of(root):
        if not has_captions(root):
            return load_imagefolder(root)
        warnings.warn(
            f"{display(unread[0])} is not read, because data.source=captions asks for the text files; "
            "data.source=imagefolder reads it",
            stacklevel=2,
        )
    findings = Findings(root)
    for folder in filter(is_folder, contents):
        for deeper in filter(is_folder, list_folder(folder)):
            findings.add([], f"{display(deeper)}: is a folder in a folder; name {display(folder)} itself")
    named = [files for folder in _folders(root) for files in _by_name(folder)]
    checked = check_pictures(((None, picture) for files in named for picture in files.pictures), findings)
    captions: dict[Path, str] = {}
    for files in named:
        if (caption := _caption(files, checked, findings)) is not None:
            captions[files.pictures[0]] = caption
    if not captions and not findings:
        findings.add([], "holds no pictures with captions")
    findings.raise_if_any(_NEEDS)
    _warn_of_repeats({picture.parent for picture in captions})
    by_subject: defaultdict[str, list[Path]] = defaultdict(list)
    for picture in captions:
        by_subject[_subject(picture.parent)].append(picture)
    samples = [
        Sample(
            id=picture.relative_to(root).as_posix(),
            subject=_subject(picture.parent),
            prompt=caption,
            references=(picture,),
            other_views=tuple(view for view in by_subject[_subject(picture.parent)] if view != picture),
            prompt_picture=picture,
        )
        for picture, caption in captions.items()
    ]
    return without_copies(samples, checked)


def _folders(root: Path) -> list[Path]:
    return [root, *filter(is_folder, list_folder(root))]


def _by_name(folder: Path) -> list[_Files]:
    """The files of a folder by their name without its ending, which two programs may have composed differently."""
    by_name: dict[str, _Files] = {}
    for path in list_folder(folder):
        kind = path.suffix.lower()
        if kind not in _CACHES and path.name not in METADATA and not is_folder(path):
            files = by_name.setdefault(normalize("NFC", path.stem), _Files(folder))
            (files.captions if kind in _CAPTIONS else files.pictures).append(path)
    return list(by_name.values())


def _caption(files: _Files, readable: Container[Source], findings: Findings) -> str | None:
    """The caption of a picture; None if the files do not belong together or hold no text, which the findings say."""
    if not files.captions:
        for picture in filter(readable.__contains__, files.pictures):
            findings.add(
                [], f"{display(picture)}: has no caption; write it into {display(picture.stem)}.txt beside it"
            )
        return None
    caption = files.captions[0]
    several = [display(path.name) for path in (files.captions if len(files.captions) > 1 else files.pictures)]
    if not files.pictures:
        findings.add([], f"{display(caption)}: a caption without its picture")
    elif len(several) > 1:
        what = (
            "captions of one picture; keep one" if len(files.captions) > 1 else "pictures with one caption; rename one"
        )
        findings.add([], f"{display(files.folder)}: {' and '.join(several)} are {what}")
    try:
        text = " ".join(line.strip() for line in read_lines(caption) if line.strip())
    except DataError as error:
        findings.include(display(caption), error)
        return None
    if flaw := flaw_of(text):
        findings.add([], f"{display(caption)}: {show(text)} {flaw}")
    elif not text:
        findings.add([], f"{display(caption)}: is empty; write what the picture shows")
    return text if files.pictures else None


def _subject(folder: Path) -> str:
    name = name_of(folder)
    repeats = _REPEATS.match(name)
    return name[repeats.end() :] if repeats else name


def _warn_of_repeats(folders: set[Path]) -> None:
    repeats = {match[1] if (match := _REPEATS.match(folder.name)) else "1" for folder in folders}
    if len(repeats) > 1:
        names = ", ".join(sorted(display(folder.name) for folder in folders)[:3])
        warnings.warn(
            f"the numbers of repeats that folders begin with ({names}) are not used: each picture is one sample, and "
            "folders with the same name after the number are one subject",
            stacklevel=2,
        )
