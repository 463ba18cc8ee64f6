"""Rewards and metrics by name: `reward(images, samples) -> Tensor[N]`, higher is better, NaN = could not be scored.

images are [N, 3, H, W] in [0, 1] on the CPU, samples carry everything else. A reward serves as a metric and the other
way round; whether one is trained on is the configuration's business. `settings` says what each can be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from customized_grpo.data import Sample


class Reward(Protocol):
    """A callable; a remote one may say what went wrong last in `last_error`."""

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor: ...
