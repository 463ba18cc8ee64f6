"""What a shaping rule is: the advantages of identity and prompt in, one advantage out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScoredGroups:
    """A rule's input: P groups of G images, scored by the identity and prompt rewards, by name."""

    rewards: Mapping[str, Tensor]  # [P, G], NaN if any reward could not score the image
    advantages: Mapping[str, Tensor]  # [P, G]
    weights: Mapping[str, Tensor]  # [T, 1, 1], one per trained step; they sum to 1

    def stacked(self) -> Tensor:
        """The advantages as one tensor [rewards, P, G]."""
        return torch.stack(list(self.advantages.values()))


@dataclass(frozen=True)
class Rule:
    """A shaping rule, and which settings it reads."""

    combine: Callable[[ScoredGroups], Tensor]  # returns [P, G], or [T, P, G] if the result depends on the step
    uses_weights: bool = False  # reads the prompt weight of each step
    static_weights: bool = False  # needs the same prompt weight at every step
    uses_bonus: bool = False  # `synergy_bonus` is added to the result; gamma and recentre are read
