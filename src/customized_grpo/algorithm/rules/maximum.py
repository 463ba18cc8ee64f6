"""The better of the two advantages; a baseline of this package."""

from torch import Tensor

from .base import Rule, ScoredGroups


def combine(groups: ScoredGroups) -> Tensor:
    """A = max(A_p, A_i), the same at every step: [P, G]."""
    return groups.stacked().amax(dim=0)


RULE = Rule(combine)
