"""How much the prompt counts at a denoising step; identity gets the rest."""

from dataclasses import dataclass

import torch
from torch import Tensor

# A phase begins at its step even if the step's progress was rounded down: 6/25 from a float32 sigma is
# .23999995. Far above such rounding, and far below the distance between two steps.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class TimeAwareWeights:
    """Time-Aware Dynamic Weighting (TDW), arXiv 2510.18263, as a function of progress u in [0, 1]:

        w_prompt(u) = high                                                   u < start
                    = low + (high - low) (1 - sigmoid(rate (u - centre)))    start <= u < end
                    = final                                                  end <= u

    and w_identity = 1 - w_prompt. The defaults are the authors' table for T = 25: steps 6, 10 and 22, and a
    rate of .8 per step. Raises ValueError for weights outside [0, 1], phases out of order, or rate <= 0.
    """

    high: float = 0.7
    low: float = 0.3
    final: float = 0.5
    start: float = 0.24
    centre: float = 0.40
    end: float = 0.88
    rate: float = 20.0

    def __post_init__(self) -> None:
        for name in ("high", "low", "final"):
            _require_share(name, getattr(self, name))
        if not 0 <= self.start <= self.centre <= self.end <= 1:
            raise ValueError(
                f"phases start {self.start}, centre {self.centre}, end {self.end}; "
                "they must be ordered within [0, 1]: start <= centre <= end"
            )
        if not self.rate > 0:
            raise ValueError(f"rate is {self.rate}; use a positive number; to reverse the slope, swap high and low")

    def prompt_weight(self, progress: float | Tensor) -> Tensor:
        """Weight of the prompt advantage at a progress of any shape: same shape, float64."""
        u = torch.as_tensor(progress, dtype=torch.float64)
        falling = self.low + (self.high - self.low) * torch.sigmoid(-self.rate * (u - self.centre))
        held = torch.where(u < self.start - _ROUNDING, self.high, falling)
        return torch.where(self.in_final_phase(u), self.final, held)

    def in_final_phase(self, progress: float | Tensor) -> Tensor:
        """Whether the final phase has begun. At T <= 16 no trained step reaches it."""
        return torch.as_tensor(progress, dtype=torch.float64) >= self.end - _ROUNDING


@dataclass(frozen=True)
class ConstantWeights:
    """The same weight at every step, the baseline of TDW. Raises ValueError for a weight outside [0, 1]."""

    prompt: float = 0.5

    def __post_init__(self) -> None:
        _require_share("prompt", self.prompt)

    def prompt_weight(self, progress: float | Tensor) -> Tensor:
        """Weight of the prompt advantage at a progress of any shape: same shape, float64."""
        return torch.full_like(torch.as_tensor(progress, dtype=torch.float64), self.prompt)


WEIGHTINGS: dict[str, type[TimeAwareWeights] | type[ConstantWeights]] = {
    "tdw": TimeAwareWeights,
    "constant": ConstantWeights,
}


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; a prompt weight is in [0, 1], identity gets the rest")
