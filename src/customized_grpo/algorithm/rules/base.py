"""What a shaping rule is: the advantages of identity and prompt in, one advantage out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..calibration import Calibration
from ..groups import group_advantages


@dataclass(frozen=True)
class ScoredGroups:
    """A rule's input: P groups of G images, scored by the identity and prompt rewards, by name."""

    rewards: Mapping[str, Tensor]  # [P, G], NaN if any reward could not score the image
    advantages: Mapping[str, Tensor]  # [P, G]
    weights: Mapping[str, Tensor]  # [T, 1, 1], one per trained step; they sum to 1
    roles: Mapping[str, str]  # "identity" or "prompt"
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)  # of all rewards, if the rule uses them
    joint_share: float = 0.5  # of the rule `joint`
    threshold: float = 0.5  # of the rule `gated`
    least_spread: float = 0.0  # of the rule's own quantity

    def stacked(self) -> Tensor:
        """The advantages as one tensor [rewards, P, G]."""
        return torch.stack(list(self.advantages.values()))

    def mean_of(self, role: str, measure: Callable[[Calibration, Tensor], Tensor]) -> Tensor:
        """Mean over the rewards of a role of a calibrated measure, such as `Calibration.quality`: [P, G]."""
        names = [name for name, of in self.roles.items() if of == role]
        return torch.stack([measure(self.calibrations[name], self.rewards[name]) for name in names]).mean(dim=0)

    def z(self, quantity: Tensor) -> Tensor:
        """`group_advantages` of the rule's own quantity."""
        return group_advantages(quantity, least_spread=self.least_spread)


@dataclass(frozen=True)
class Rule:
    """A shaping rule, and which settings it reads."""

    combine: Callable[[ScoredGroups], Tensor]  # returns [P, G], or [T, P, G] if the result depends on the step
    quantity: Callable[[ScoredGroups], Tensor] | None = None  # what the rule z-scores itself, in the same shape
    uses_weights: bool = False  # reads the prompt weight of each step
    static_weights: bool = False  # needs the same prompt weight at every step
    uses_bonus: bool = False  # `synergy_bonus` is added to the result; gamma and recentre are read
    uses_calibration: bool = False  # needs to know what each reward gives to bad and good pictures
