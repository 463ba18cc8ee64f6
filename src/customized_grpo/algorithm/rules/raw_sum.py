"""A weighted sum of the rewards themselves, as most trainers do it."""

from torch import Tensor

from ..groups import group_advantages, weighted_sum
from .base import Rule, ScoredGroups


def combine(groups: ScoredGroups) -> Tensor:
    """z-score of w_p r_p + w_i r_i, raw, at every step with its weights: the larger spread rules."""
    return group_advantages(weighted_sum(groups.rewards, groups.weights))


RULE = Rule(combine, uses_weights=True)
