"""Masks: which of their pixels are the subject, and whether they fit their picture as it is seen, upright."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping

from customized_grpo.data.findings import Findings, Place
from customized_grpo.data.images import Checked, PictureError, Source, for_each, load_mask
from customized_grpo.files.paths import display

SUBJECT = 128  # lowest grey value of a mask that means the subject

_WHITE = "masks that are white all over, so that they show the whole picture and not its subject"
_UNCLEAR = (
    "photographs turned by their EXIF, with masks that would fit before and after; they have to be drawn on the "
    "upright picture. The masks"
)


def fits(mask: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) have the same proportions, within 1 %."""
    return abs(mask[0] * picture[1] - picture[0] * mask[1]) <= 0.01 * picture[0] * mask[1]


def check_masks(
    uses: Iterable[tuple[Place | None, Source, Source]], pictures: Mapping[Source, Checked], findings: Findings
) -> None:
    """Add each mask that cannot be read, shows no subject, or does not fit its picture.

    Warns of masks that are white all over, and of those that fit a turned photograph both upright and as stored.

    uses      where a mask is listed, its picture, and the mask
    pictures  what the check found out about the pictures; those that cannot be read are missing
    """
    places: defaultdict[tuple[Source, Source], list[Place]] = defaultdict(list)
    for place, picture, mask in uses:
        places[mask, picture] += [] if place is None else [place]
    masks = list(dict.fromkeys(mask for mask, _ in places))
    measures = dict(zip(masks, for_each(masks, _measure), strict=True))
    white, unclear = dict[Source, None](), dict[Source, None]()
    for (mask, picture), listed in places.items():
        measured, checked = measures[mask], pictures.get(picture)
        if isinstance(measured, PictureError):
            findings.add(listed, str(measured))
            continue
        size, darkest, brightest = measured
        if brightest < SUBJECT:
            findings.add(listed, f"{display(mask)}: {_empty(brightest)}")
        elif darkest >= SUBJECT:
            white[mask] = None
        if checked is not None and not fits(size, checked.size):
            findings.add(listed, f"{display(mask)}: {_misfit(size, picture, checked)}")
        elif checked is not None and checked.turned and fits(size, checked.stored):
            unclear[mask] = None
    for what, found in ((_WHITE, white), (_UNCLEAR, unclear)):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            warnings.warn(f"{what}: {', '.join(map(display, list(found)[:3]))}{more}", stacklevel=2)


def _measure(mask: Source) -> tuple[tuple[int, int], int, int]:
    """Size, darkest and brightest value of a mask."""
    grey = load_mask(mask)
    darkest, brightest = grey.getextrema()
    return grey.size, int(darkest), int(brightest)  # pyright: ignore[reportArgumentType] - one band


def _empty(brightest: int) -> str:
    return (
        f"this mask shows no subject: nothing in it is {SUBJECT} or more (the highest grey value of 255 is "
        f"{brightest}); 0 and 1 have to be 0 and 255, with 16 bits 0 and 65535"
    )


def _misfit(size: tuple[int, int], picture: Source, checked: Checked) -> str:
    remedy = "use the same proportions"
    if checked.turned:
        remedy = f"its EXIF turns it (as stored: {_size(checked.stored)}), and masks are drawn on the upright picture"
    return f"a mask of {_size(size)} does not fit {display(picture)} of {_size(checked.size)}; {remedy}"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
