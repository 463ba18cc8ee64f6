"""The harmonic mean of the advantages, made positive."""

import torch.nn.functional as F
from torch import Tensor

from ..groups import group_advantages
from .base import Rule, ScoredGroups


def combine(groups: ScoredGroups) -> Tensor:
    """z-score of the harmonic mean of softplus(A), which is positive, so without pole; no weights."""
    return group_advantages(1 / (1 / F.softplus(groups.stacked())).mean(dim=0))


RULE = Rule(combine)
