"""What is checked of every data set: ids, paths, pictures and masks. All problems go to the findings."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from customized_grpo.data.findings import Findings, Place, show
from customized_grpo.data.images import Checked, PictureError, Source, check_image, for_each
from customized_grpo.data.masks import check_masks
from customized_grpo.data.sample import Sample
from customized_grpo.files.paths import display


def check_ids(ids: Iterable[tuple[Place, str]], findings: Findings) -> None:
    """Add every id that is used more than once."""
    places: defaultdict[str, list[Place]] = defaultdict(list)
    for place, name in ids:
        places[name].append(place)
    for name, uses in places.items():
        if len(uses) > 1:
            findings.add(uses, f"id {show(name)} is used more than once; give each sample its own")


def check_inside(uses: Iterable[tuple[Place, str]], root: Path, findings: Findings) -> None:
    """Add each of these paths, which all lead out of `root`, with its places and the way out."""
    places: defaultdict[str, list[Place]] = defaultdict(list)
    for place, name in uses:
        if place not in places[name]:
            places[name].append(place)
    for name, places_of_name in places.items():
        remedy = (
            "data.root=/ allows absolute paths" if name.startswith("/") else "set data.root to a folder above both"
        )
        problem = f"{show(name)} leads out of {display(root)}, the folder of the pictures; {remedy}"
        findings.add(places_of_name, problem)


def check_pictures(uses: Iterable[tuple[Place | None, Source]], findings: Findings) -> dict[Source, Checked]:
    """Read each distinct picture once, however often it is used; add those that cannot be read, return the others."""
    places: defaultdict[Source, list[Place]] = defaultdict(list)
    for place, picture in uses:
        known = places[picture]
        if place is not None and place not in known[-1:]:
            known.append(place)
    checked = {}
    for picture, result in zip(places, for_each(list(places), check_image), strict=True):
        if isinstance(result, PictureError):
            findings.add(places[picture], str(result))
        else:
            checked[picture] = result
    return checked


def check_samples(samples: Sequence[tuple[Place | None, Sample]], findings: Findings) -> dict[Source, Checked]:
    """Check ids, pictures and masks of a layout's samples, each given with its place; returns the pictures."""
    check_ids(((place, sample.id) for place, sample in samples if place is not None), findings)
    checked = check_pictures(
        ((place, picture) for place, sample in samples for picture in (*sample.references, *sample.other_views)),
        findings,
    )
    masks = ((place, sample.references[0], sample.mask) for place, sample in samples if sample.mask is not None)
    check_masks(masks, checked, findings)
    return checked
