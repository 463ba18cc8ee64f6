"""The geometric mean of the advantages, made positive."""

import torch.nn.functional as F
from torch import Tensor

from ..groups import group_advantages
from .base import Rule, ScoredGroups


def combine(groups: ScoredGroups) -> Tensor:
    """z-score of the geometric mean of softplus(A); no weights."""
    return group_advantages(F.softplus(groups.stacked()).log().mean(dim=0).exp())


RULE = Rule(combine)
