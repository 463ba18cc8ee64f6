"""Pictures that occur where another one is expected: as another view of themselves, or on both sides of a split."""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from customized_grpo.data.images import Checked, Source, content_of
from customized_grpo.data.sample import Sample
from customized_grpo.files.paths import display
from customized_grpo.wording import counted

_NAMED = 3  # pairs in a warning


def without_copies(samples: Sequence[Sample], checked: Mapping[Source, Checked]) -> list[Sample]:
    """The samples without other views that are, pixel for pixel, one of their references, for layouts that choose
    the views themselves: a copy of the reference would be the best answer to them. A warning names the pictures.

    checked  what the check found out about each picture
    """
    copies = _copies(samples, checked)
    _warn("the same picture is no other view of itself and is left out", samples, copies)
    return [
        replace(sample, other_views=tuple(view for view in sample.other_views if view not in found))
        for sample, found in zip(samples, copies, strict=True)
    ]


def warn_of_copies(samples: Sequence[Sample], checked: Mapping[Source, Checked]) -> None:
    """Warn of such views in a list that names them itself, and is not changed."""
    what = "the same picture is both reference and other view, so that a copy is the best answer to it"
    _warn(what, samples, _copies(samples, checked))


Copies = dict[Source, Source]  # of a sample: other views, and the references that they are equal to


def _copies(samples: Iterable[Sample], checked: Mapping[Source, Checked]) -> list[Copies]:
    keys = _equal_pictures(checked)
    copies = []
    for sample in samples:
        shown = {keys[reference]: reference for reference in sample.references}
        copies.append({view: shown[keys[view]] for view in sample.other_views if keys[view] in shown})
    return copies


def _warn(what: str, samples: Sequence[Sample], copies: Sequence[Copies]) -> None:
    pairs = dict.fromkeys(tuple(sorted({display(a), display(b)})) for found in copies for a, b in found.items())
    if not pairs:
        return
    names = ", ".join(" = ".join(pair) for pair in list(pairs)[:_NAMED])
    more = f" and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else ""
    pairings = zip(samples, copies, strict=True)
    bare = sum(bool(found) and found.keys() == set(sample.other_views) for sample, found in pairings)
    left = f"; {bare} of {len(samples)} samples have no other view that differs" if bare else ""
    warnings.warn(f"{what}: {names}{more}{left}", stacklevel=3)


def _equal_pictures(checked: Mapping[Source, Checked]) -> dict[Source, object]:
    """A key for each picture that is the same for equal pixels. Only pictures that may be equal are read again."""
    by_size: defaultdict[object, list[Source]] = defaultdict(list)
    by_content: defaultdict[bytes, list[Source]] = defaultdict(list)
    for picture, known in checked.items():
        by_size[known.size].append(picture)
        by_content[known.content].append(picture)
    keys = dict[Source, object]()
    for pictures in by_size.values():
        mixed = len({checked[picture].reduced for picture in pictures}) > 1
        for picture in pictures:
            known = checked[picture]
            again = known.reduced and (mixed or len(by_content[known.content]) > 1)
            keys[picture] = content_of(picture) if again else known.content
    return keys


def warn_of_shared(train: Iterable[Sample], held_out: Iterable[Sample]) -> None:
    """Warn of pictures, or files of equal content, that training and held-out samples of different subjects use."""
    train, held_out = list(train), list(held_out)
    keys = _equal_files(picture for sample in (*train, *held_out) for picture in _pictures(sample))
    trained = {keys[picture]: sample.subject for sample in train for picture in _pictures(sample)}
    shared = {
        picture: (trained[keys[picture]], sample.subject)
        for sample in held_out
        for picture in _pictures(sample)
        if trained.get(keys[picture], sample.subject) != sample.subject
    }
    if shared:
        picture, (one, other) = next(iter(shared.items()))
        count = f"{counted(len(shared), 'picture')} {'is' if len(shared) == 1 else 'are'}"
        warnings.warn(
            f"{count} used both in training and held out, under two subjects: {display(picture)} under {one!r} and "
            f"{other!r}; if they are one, give these samples the same subject",
            stacklevel=2,
        )


def _pictures(sample: Sample) -> tuple[Source, ...]:
    return *sample.references, *sample.other_views


def _equal_files(pictures: Iterable[Source]) -> dict[Source, object]:
    """A key for each picture that is the same for files of equal content. Only files of equal size are read."""
    keys: dict[Source, object] = {picture: picture for picture in pictures}
    by_size: defaultdict[int, list[Path]] = defaultdict(list)
    for picture in keys:
        if isinstance(picture, Path):
            by_size[picture.stat().st_size].append(picture)
    for files in by_size.values():
        if len(files) > 1:
            keys |= {file: hashlib.blake2b(file.read_bytes()).digest() for file in files}
    return keys
