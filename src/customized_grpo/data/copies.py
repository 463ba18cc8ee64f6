"""Pictures that occur where another one is expected: as another view of themselves, or on both sides of a split."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from customized_grpo.data.images import Checked, Source, content_of
from customized_grpo.data.sample import Sample
from customized_grpo.files.paths import display

_NAMED = 3  # pairs in a warning


def without_copies(samples: Sequence[Sample], checked: Mapping[Source, Checked]) -> list[Sample]:
    """The samples without other views that are, pixel for pixel, one of their references: a copy of the reference
    would be the best answer to them. A warning names these pictures.

    checked  what the check found out about each picture
    """
    groups = _equal_pictures(checked)
    pairs, kept, viewless = dict[str, None](), [], 0
    for sample in samples:
        shown = {groups[reference]: reference for reference in sample.references}
        copies = [view for view in sample.other_views if groups[view] in shown]
        for view in copies:
            same = {display(view), display(shown[groups[view]])}
            pairs[" = ".join(sorted(same)) if len(same) > 1 else f"{display(view)} listed twice"] = None
        views = tuple(view for view in sample.other_views if groups[view] not in shown)
        viewless += not views and bool(copies)
        kept.append(replace(sample, other_views=views) if copies else sample)
    if pairs:
        names = ", ".join(list(pairs)[:_NAMED])
        more = f" and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else ""
        left = f"; {viewless} of {len(samples)} samples have no other view left" if viewless else ""
        warnings.warn(f"the same picture is no other view of itself: {names}{more}{left}", stacklevel=2)
    return kept


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
    """Warn of pictures that training and held-out samples of different subjects both use."""
    trained: dict[Source, str] = {}
    for sample in train:
        trained |= dict.fromkeys((*sample.references, *sample.other_views), sample.subject)
    shared = {
        picture: (trained[picture], sample.subject)
        for sample in held_out
        for picture in (*sample.references, *sample.other_views)
        if picture in trained and trained[picture] != sample.subject
    }
    if shared:
        picture, (one, other) = next(iter(shared.items()))
        count = "1 picture is" if len(shared) == 1 else f"{len(shared)} pictures are"
        warnings.warn(
            f"{count} used both in training and held out, under two subjects: {display(picture)} under {one!r} and "
            f"{other!r}; if they are one, give these samples the same subject",
            stacklevel=2,
        )
