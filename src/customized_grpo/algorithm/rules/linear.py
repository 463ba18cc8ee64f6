"""Naive GRPO: a weighted sum of the advantages."""

from torch import Tensor

from ..groups import weighted_sum
from .base import Rule, ScoredGroups


def combine(groups: ScoredGroups) -> Tensor:
    """w_p A_p + w_i A_i, at every step with its own weights. With the bonus added this is SARS."""
    return weighted_sum(groups.advantages, groups.weights)


RULE = Rule(combine, uses_weights=True)
