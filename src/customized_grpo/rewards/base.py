"""What a reward is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from customized_grpo.data import Sample

# Why a remote reward could not score an image. The first three cost all images of a request.
Cause = Literal[
    "no_answer",  # no complete reply came, or the server was too busy
    "refused",  # the server answered with an error
    "bad_reply",  # the reply holds no score
    "null",  # the server declined to score the image
    "out_of_range",  # the score is impossible
]


class Reward(Protocol):
    """A callable. A remote reward may describe its latest failure in `last_error`."""

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor: ...
