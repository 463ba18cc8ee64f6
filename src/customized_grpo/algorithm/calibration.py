"""What a reward is worth: where it stands between what it gives to bad pictures and to good ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """Scores that a reward gives on average to bad and to good pictures; good is higher.

    Bad is a picture of another subject (identity) or one that follows another prompt (prompt). Good is another real
    view of the subject, so that copying the reference earns nothing more, or a picture that follows the prompt.
    Raises ValueError unless both are finite and good > bad.
    """

    bad: float
    good: float
    capped: bool = False  # what is better than good counts as good; for identity, where more means copying

    def __post_init__(self) -> None:
        if not -math.inf < self.bad < self.good < math.inf:
            raise ValueError(f"bad is {self.bad:g} and good is {self.good:g}; good must be the higher one")

    def position(self, rewards: Tensor) -> Tensor:
        """(r - bad) / (good - bad): 0 for bad, 1 for good pictures. Any shape; NaN stays NaN."""
        return (rewards - self.bad) / (self.good - self.bad)

    def quality(self, rewards: Tensor) -> Tensor:
        """q = clip(position, 0, 1), without the upper bound unless capped. Any shape; NaN stays NaN."""
        return self.position(rewards).clamp(0, 1 if self.capped else None)
