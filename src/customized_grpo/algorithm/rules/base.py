"""What a shaping rule is: the advantages of identity and prompt in, one advantage out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScoredGroups:
    """What a rule sees of the identity and prompt rewards, by name."""

    rewards: Mapping[str, Tensor]  # [P, G], NaN where any reward could not score the image
    advantages: Mapping[str, Tensor]  # [P, G]
    weights: Mapping[str, Tensor]  # [T, 1, 1], they sum to 1

    def stacked(self) -> Tensor:
        """The advantages [rewards, P, G]."""
        return torch.stack(list(self.advantages.values()))


@dataclass(frozen=True)
class Rule:
    """A shaping rule and which settings it reads."""

    combine: Callable[[ScoredGroups], Tensor]  # [P, G], or [T, P, G] if it differs by step
    uses_weights: bool = False  # reads the prompt weight of each step
    static_weights: bool = False  # refuses a prompt weight that changes with the step
    uses_bonus: bool = False  # `synergy_bonus` is added to what it returns; reads gamma and recentre
