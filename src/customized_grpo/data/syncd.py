"""SynCD (arXiv 2502.01720): synthetic sets of pictures that show one object in several scenes.

The format is taken from https://github.com/nupurkmr9/syncd (method/data/data.py and dataset/gen_rigid.py,
gen_deformable.py, cal_scores.py), which publishes the data as huggingface.co/datasets/nupurkmr9/syncd. A folder holds
`*metadata.json` (with scores: `*metadata_with_scores.json`), each an array of {"filenames": [...], "prompts": [...]}
with one prompt per picture and file names relative to the folder; the mask of `a/b.jpg` is `a/masks/b.jpg`.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from customized_grpo.data.checks import check_inside, check_samples
from customized_grpo.data.copies import without_copies
from customized_grpo.data.entries import Entry, read_entries
from customized_grpo.data.findings import DataError, Findings, Place, show
from customized_grpo.data.reading import list_folder
from customized_grpo.data.sample import Sample
from customized_grpo.files.paths import as_stored, inside, is_folder
from customized_grpo.files.text import flaw_of
from customized_grpo.wording import counted

_METADATA = ("*metadata.json", "*metadata_with_scores.json")
_FIELDS = ("filenames", "prompts")
_DOWNLOAD = "data.root is the unpacked download of huggingface.co/datasets/nupurkmr9/syncd (run its unzip.sh)."


def load_syncd(root: Path) -> list[Sample]:
    """One sample per picture: its prompt, with the next picture of the set as reference, the rest as other views.

    The picture that the prompt was written for is another view only if there is no further one: identity against it
    would also reward its background. Each set is a subject; sets with the same
    non-empty `objaverse_id` are one subject. Ids are paths below `root` without the ending. Masks are used if the
    folder `masks` exists; then every reference needs one.

    root  the unpacked data: the folder with the metadata, or one whose direct subfolders have them

    Raises:
        DataError: all problems of metadata and pictures at once.
    """
    files = _metadata_files(root)
    if not files:
        raise DataError(root, [f"no {' or '.join(_METADATA)} here or one folder below"], _DOWNLOAD)
    findings = Findings(root)
    samples = [sample for file in files for sample in _samples(file, root, findings)]
    if not samples and not findings:
        findings.add([], "holds no sets of pictures")
    checked = check_samples(samples, findings)
    findings.raise_if_any(
        "A set needs as many prompts as filenames, and its pictures below the folder of the metadata."
    )
    return without_copies([sample for _, sample in samples], checked)


def _metadata_files(root: Path) -> list[Path]:
    """The metadata of root and its direct subfolders. Files with and without scores list the same sets, so those with
    scores are read only in folders that have no others."""
    metadata: list[Path] = []
    for folder in (root, *filter(is_folder, list_folder(root, _DOWNLOAD))):
        metadata += next((files for pattern in _METADATA if (files := sorted(folder.glob(pattern)))), [])
    return metadata


def _samples(file: Path, root: Path, findings: Findings) -> Iterator[tuple[Place, Sample]]:
    try:
        entries = list(read_entries(file, findings))
    except DataError as error:
        findings.include(file.name, error)
        return
    for place, value in entries:
        if isinstance(value, dict):
            yield from _set(Entry(place, value, findings), file.parent, root)
        else:
            findings.add([place], f"must be an object with filenames and prompts, not {show(value)}")


def _set(entry: Entry, folder: Path, root: Path) -> Iterator[tuple[Place, Sample]]:
    for name in _FIELDS:
        if name not in entry:
            entry.report_missing(name)
    names, prompts = entry.texts("filenames"), entry.texts("prompts", "texts")
    if not (names and prompts):
        return
    if len(names) != len(prompts) or len(names) < 2:
        given = f"{counted(len(names), 'filename')} and {counted(len(prompts), 'prompt')}"
        entry.report(f"has {given}; a set needs two or more, one prompt each")
        return
    for prompt in prompts:
        if flaw := flaw_of(prompt):
            entry.report(f"prompts: {show(prompt)} {flaw}")
    files = [as_stored(file) for name in names if (file := inside(PurePath(name), folder))]
    if len(files) < len(names):
        outside = [(entry.place, name) for name in names if not inside(PurePath(name), folder)]
        check_inside(outside, folder, entry.findings)
        return
    ids = [(folder.relative_to(root) / os.path.splitext(name)[0]).as_posix() for name in names]  # noqa: PTH122 - "."
    masked = is_folder(files[0].parent / "masks")
    for index, prompt in enumerate(prompts):
        own, reference = files[index], files[(index + 1) % len(files)]
        further = tuple(file for file in files if file not in (own, reference))
        sample = Sample(
            id=ids[index],
            subject=str(entry.fields.get("objaverse_id") or ids[0]),
            prompt=prompt,
            references=(reference,),
            prompt_picture=own,
            other_views=further or (own,),
            mask=as_stored(reference.parent / "masks" / f"{reference.stem}.jpg") if masked else None,
            extra={name: value for name, value in entry.fields.items() if name not in _FIELDS},
        )
        yield entry.place, sample
