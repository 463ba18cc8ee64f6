"""The worse of the advantages."""

from torch import Tensor

from .base import Rule, ScoredGroups


def combine(groups: ScoredGroups) -> Tensor:
    """The worst of the advantages; no weights, the same at every step."""
    return groups.stacked().amin(dim=0)


RULE = Rule(combine)
