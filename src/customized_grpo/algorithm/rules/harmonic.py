"""The harmonic mean of the two advantages; a baseline of this package."""

import torch.nn.functional as F
from torch import Tensor

from .base import Rule, ScoredGroups


def quantity(groups: ScoredGroups) -> Tensor:
    return 1 / (1 / F.softplus(groups.stacked())).mean(dim=0)


def combine(groups: ScoredGroups) -> Tensor:
    """A = z(2 a b / (a + b)), a = softplus(A_p), b = softplus(A_i), the same at every step: [P, G].

    Of the advantages themselves the mean would have a pole at A_p = -A_i; softplus makes them positive.
    """
    return groups.z(quantity(groups))


RULE = Rule(combine, quantity)
