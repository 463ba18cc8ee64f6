"""The worse of the two advantages; a baseline of this package."""

from torch import Tensor

from .base import Rule, ScoredGroups


def combine(groups: ScoredGroups) -> Tensor:
    """A = min(A_p, A_i), the same at every step: [P, G]."""
    return groups.stacked().amin(dim=0)


RULE = Rule(combine)
