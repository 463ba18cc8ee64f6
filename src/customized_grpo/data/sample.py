"""One sample: reference pictures of a subject, and a prompt for a new picture of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from customized_grpo.data.images import Source, load_image, load_mask


@dataclass(frozen=True)
class Sample:
    """What a policy is conditioned on and what rewards may look at. Groups are keyed by `id`, so ids must be unique.

    Pictures are files or pictures in memory. Files are opened at each call and never cached.

    Raises:
        ValueError: the id is empty, or there is no reference.
    """

    id: str
    subject: str  # samples of one subject never end up in both training and held-out
    prompt: str
    references: tuple[Source, ...]  # what the policy is shown
    other_views: tuple[
        Source, ...
    ] = ()  # further pictures of the subject, for identity rewards that do not favour copies
    prompt_picture: Source | None = None  # a real one that follows the prompt, if one is known
    mask: Source | None = None  # where the subject is in the first reference, white on black
    class_word: str | None = None  # "dog" for a subject named "dog6"
    extra: Mapping[str, Any] = field(default_factory=dict)  # all other fields of the entry

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError(f"the sample with prompt {self.prompt!r} has no id; give each sample its own")
        if not self.references:
            raise ValueError(f"sample {self.id!r} has no reference; give at least one picture of its subject")

    def __hash__(self) -> int:
        return hash(self.id)

    def reference_images(self) -> list[Image.Image]:
        """The references as RGB at original resolution.

        Raises:
            PictureError: a picture cannot be read.
        """
        return [load_image(source) for source in self.references]

    def other_view_images(self) -> list[Image.Image]:
        """The other views as RGB at original resolution.

        Raises:
            PictureError: a picture cannot be read.
        """
        return [load_image(source) for source in self.other_views]

    def mask_image(self) -> Image.Image | None:
        """The mask in grey, the subject white.

        Raises:
            PictureError: the mask cannot be read.
        """
        return None if self.mask is None else load_mask(self.mask)
