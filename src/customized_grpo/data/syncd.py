"""SynCD (arXiv 2502.01720): synthetic sets of pictures that show one object in several scenes.

Read from https://github.com/nupurkmr9/syncd, which publishes the data as huggingface.co/datasets/nupurkmr9/syncd:
method/data/data.py and dataset/gen_rigid.py, gen_deformable.py, cal_scores.py. A folder holds `*metadata.json` (with
scores: `*metadata_with_scores.json`), each an array of {"filenames": [...], "prompts": [...]} with one prompt per
picture, file names relative to the folder; the mask of `a/b.jpg` is `a/masks/b.jpg`.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from customized_grpo.data.entries import Entry, read_entries
from customized_grpo.data.findings import DataError, Findings, Place, check_inside, check_samples, show
from customized_grpo.data.images import inside
from customized_grpo.data.sample import Sample

_METADATA = ("*metadata.json", "*metadata_with_scores.json")
_READ = ("filenames", "prompts")


def load_syncd(root: Path) -> list[Sample]:
    """A sample per picture: its prompt, with the next picture of the set as reference, the rest as other views.

    The other views begin with the picture that the prompt was written for. A set is a subject, sets with the same
    non-empty `objaverse_id` are one. Ids are file names without ending, below `root`. Masks are taken where the
    folder `masks` exists; then every reference needs one.

    root  the unpacked data: the folder with the metadata, or one whose direct subfolders have them

    Raises:
        DataError: everything wrong with metadata and pictures at once.
    """
    files = _metadata_files(root)
    if not files:
        problem = f"no {' or '.join(_METADATA)} here or one folder below" if root.is_dir() else "no such folder"
        remedy = "data.root is the unpacked download of huggingface.co/datasets/nupurkmr9/syncd (run its unzip.sh)."
        raise DataError(root, [problem], remedy)
    findings = Findings(root)
    samples = [found for file in files for found in _samples(file, root, findings)]
    if not samples and not findings:
        findings.add([], "holds no sets of pictures")
    check_samples(samples, findings)
    findings.raise_if_any("A set needs filenames and as many prompts; the pictures lie below their metadata's folder.")
    return [sample for _, sample in samples]


def _metadata_files(root: Path) -> list[Path]:
    """Those without scores where a folder has both: they tell of the same sets."""
    found: list[Path] = []
    for folder in (root, *sorted(path for path in root.glob("*") if path.is_dir())):
        found += next((files for pattern in _METADATA if (files := sorted(folder.glob(pattern)))), [])
    return found


def _samples(file: Path, root: Path, findings: Findings) -> Iterator[tuple[Place, Sample]]:
    try:
        entries = list(read_entries(file, findings))
    except DataError as error:  # one file that is no array; the others are told of as well
        for problem in error.problems:
            findings.add([], f"{file.name}: {problem}")
        return
    for place, item in entries:
        if isinstance(item, dict):
            yield from _set(Entry(place, item, findings), file.parent, root)
        else:
            findings.add([place], f"must be an object with filenames and prompts, not {show(item)}")


def _set(entry: Entry, folder: Path, root: Path) -> Iterator[tuple[Place, Sample]]:
    for name in _READ:
        if name not in entry:
            entry.say(f"has no {name} (fields: {', '.join(entry.fields) or 'none'})")
    names, prompts = entry.texts("filenames"), entry.texts("prompts", "texts")
    if not (names and prompts):
        return
    if len(names) != len(prompts) or len(names) < 2:
        entry.say(f"has {len(names)} filenames and {len(prompts)} prompts; a set has as many of both, at least two")
        return
    files = [file for name in names if (file := inside(PurePath(name), folder))]
    if len(files) < len(names):
        outside = [(entry.place, name) for name in names if not inside(PurePath(name), folder)]
        check_inside(outside, folder, entry.findings)
        return
    ids = [(folder.relative_to(root) / os.path.splitext(name)[0]).as_posix() for name in names]  # noqa: PTH122 - "."
    masked = (files[0].parent / "masks").is_dir()
    for shown, prompt in enumerate(prompts):
        reference = files[(shown + 1) % len(files)]
        others = (files[shown], *(file for file in files if file not in (files[shown], reference)))
        sample = Sample(
            id=ids[shown],
            subject=str(entry.fields.get("objaverse_id") or ids[0]),
            prompt=prompt,
            references=(reference,),
            other_views=others,
            mask=reference.parent / "masks" / f"{reference.stem}.jpg" if masked else None,
            extra={name: value for name, value in entry.fields.items() if name not in _READ},
        )
        yield entry.place, sample
