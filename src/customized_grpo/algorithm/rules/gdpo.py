"""GDPO, arXiv 2601.05242: the weighted sum of the advantages, whitened over the batch."""

import torch
from torch import Tensor

from ..groups import group_advantages
from .base import Rule, ScoredGroups
from .linear import combine as linear


def combine(groups: ScoredGroups) -> Tensor:
    """A = (S - mean S) / std S, S = w_p A_p + w_i A_i, over all images of all groups: [T, P, G].

    The batch is all the groups passed in, so gather those of every process first. Weights must be static: each step is
    whitened on its own, so weights that change with the step would lose the scale that they set.
    """
    combined = linear(groups)
    whitened = group_advantages(combined.flatten(start_dim=-2)).view_as(combined)
    # Every group has mean 0, so the batch has too, up to rounding: groups without spread must get exactly 0.
    return torch.where(combined == 0, 0.0, whitened)


RULE = Rule(combine, uses_weights=True, static_weights=True)
