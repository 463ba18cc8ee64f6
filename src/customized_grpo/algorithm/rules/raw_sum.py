"""Rewards added up first and normalised once, as usual in GRPO; a baseline of this package."""

from torch import Tensor

from ..groups import weighted_sum
from .base import Rule, ScoredGroups


def quantity(groups: ScoredGroups) -> Tensor:
    return weighted_sum(groups.rewards, groups.weights)


def combine(groups: ScoredGroups) -> Tensor:
    """A = z(w_p r_p + w_i r_i), with the weights of each step: [T, P, G]. The reward with more spread dominates."""
    return groups.z(quantity(groups))


RULE = Rule(combine, quantity, uses_weights=True)
