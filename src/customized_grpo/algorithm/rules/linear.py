"""Naive GRPO, the baseline of arXiv 2510.18263: the weighted sum of the advantages."""

from torch import Tensor

from ..groups import weighted_sum
from .base import Rule, ScoredGroups


def combine(groups: ScoredGroups) -> Tensor:
    """A = w_p A_p + w_i A_i, with the weights of each step: [T, P, G]."""
    return weighted_sum(groups.advantages, groups.weights)


RULE = Rule(combine, uses_weights=True)
