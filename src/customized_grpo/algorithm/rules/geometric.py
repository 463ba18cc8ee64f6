"""The geometric mean of the two advantages; a baseline of this package."""

import torch.nn.functional as F
from torch import Tensor

from .base import Rule, ScoredGroups


def quantity(groups: ScoredGroups) -> Tensor:
    return F.softplus(groups.stacked()).log().mean(dim=0).exp()


def combine(groups: ScoredGroups) -> Tensor:
    """A = z(sqrt(a b)), a = softplus(A_p), b = softplus(A_i), the same at every step: [P, G].

    Advantages have both signs, and the root needs positive numbers; softplus makes them so.
    """
    return groups.z(quantity(groups))


RULE = Rule(combine, quantity)
