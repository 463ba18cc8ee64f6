"""The subjects of samples that name none: by the folders of their pictures."""

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from unicodedata import normalize

from customized_grpo.data.findings import DataError, Findings, Place
from customized_grpo.files.paths import display
from customized_grpo.files.text import is_utf8

_PARTS = ("train", "training", "test", "testing", "val", "valid", "validation", "eval")

Pictures = tuple[Place, Sequence[Path], Sequence[Path]]  # of a sample: where it is listed, references, other views


def folder_of(picture: Path) -> Path:
    """The folder of a picture, absolute and without ".."."""
    return Path(os.path.abspath(picture.parent))  # noqa: PTH100 - resolve() follows links, which may be named otherwise


def name_of(folder: Path) -> str:
    """The name of a folder, where it has one; of a link its own, not its target's. Raises DataError if not UTF-8."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - as in folder_of
    if not is_utf8(folder.name):
        raise DataError(folder, ["its name is not UTF-8"], "Give the folder another name.")
    return normalize("NFC", folder.name) or str(folder)


def warn_of_names(subjects: Collection[str]) -> None:
    """Warn of subjects that are called as parts of a data set are, and of those whose names differ in case alone."""
    parts = sorted(subject for subject in subjects if subject.casefold() in _PARTS)
    if parts and len(subjects) > 1:
        warnings.warn(
            f"subjects are called {', '.join(parts)}, as parts of a data set are: if they are not subjects, name the "
            "subject of each sample, or read one of these folders alone",
            stacklevel=2,
        )
    alike = defaultdict[str, list[str]](list)
    for subject in sorted(subjects):
        alike[subject.casefold()].append(subject)
    if same := [", ".join(names) for names in alike.values() if len(names) > 1]:
        warnings.warn(f"subjects whose names differ in case alone count as several: {'; '.join(same)}", stacklevel=2)


def subjects_of(samples: Sequence[Pictures], root: Path, findings: Findings) -> dict[Path, str]:
    """What each folder of a first reference shows: the name of the folder.

    Folders are one subject if a sample has its references in one and another view in the other. "rex/reference"
    and "rex/scene" are then "rex", after the folder that holds these two and no other; if there is none, they are
    "reference+scene", with a warning.

    Adds a name that several folders have and nothing explains: "rex/train" and "mug/train" are two subjects, but
    "train/rex" and "test/rex" one.
    """
    groups = _linked(samples)
    names = _names(set(groups.values()))
    places: defaultdict[str, dict[frozenset[Path], list[Place]]] = defaultdict(dict)
    for place, references, _ in samples:
        group = groups[folder_of(references[0])]
        places[names[group]].setdefault(group, []).append(place)
    for name, by_group in places.items():
        if len(by_group) > 1:
            shown = ", ".join(os.path.relpath(min(group), root) for group in list(by_group)[:3])
            more = f" and {len(by_group) - 3} more" if len(by_group) > 3 else ""
            findings.add(
                (place for listed in by_group.values() for place in listed),
                f"{len(by_group)} folders are called {display(name)} ({display(shown)}{more}), which may be one "
                "subject or several; give each sample a subject",
            )
    return {folder: names[group] for folder, group in groups.items()}


def _linked(samples: Iterable[Pictures]) -> dict[Path, frozenset[Path]]:
    """By each folder, all folders of its subject."""
    parents: dict[Path, Path] = {}

    def first(folder: Path) -> Path:
        while parents.setdefault(folder, folder) != folder:
            folder = parents[folder]
        return folder

    for _, references, views in samples:
        own = folder_of(references[0])
        first(own)
        several = any(folder_of(reference) != own for reference in references)  # perhaps a subject each
        for view in () if several else views:
            parents[first(folder_of(view))] = first(own)
    groups: defaultdict[Path, set[Path]] = defaultdict(set)
    for folder in list(parents):
        groups[first(folder)].add(folder)
    return {folder: frozenset(group) for group in groups.values() for folder in group}


def _names(groups: Iterable[frozenset[Path]]) -> dict[frozenset[Path], str]:
    groups = list(groups)
    below = Counter(above for group in groups for folder in group for above in (folder, *folder.parents))
    names = {}
    for group in groups:
        common = Path(os.path.commonpath(group))
        if len(group) == 1 or below[common] == len(group):
            names[group] = name_of(common)
            continue
        names[group] = "+".join(sorted(map(name_of, group)))
        warnings.warn(
            f"the folders of {display(names[group])} are taken for one subject, because samples list pictures of one "
            "as other views of the other; if they are several, correct other_views or give each sample a subject",
            stacklevel=2,
        )
    return names
