"""GDPO, arXiv 2601.05242: a weighted sum of the advantages, whitened over the batch."""

import torch
from torch import Tensor

from ..groups import group_advantages
from .base import Rule, ScoredGroups
from .linear import combine as linear


def combine(groups: ScoredGroups) -> Tensor:
    """GDPO, arXiv 2601.05242: w_p A_p + w_i A_i, whitened over all images of the batch. Static weights.

    Whitened step by step, weights that change with the step would lose the scale they set, so they are
    refused. The batch is all the groups handed in: gather those of every process first.
    """
    for name, weights in groups.weights.items():
        if weights.min() < weights.max():
            raise ValueError(
                f"gdpo with weights of {name!r} from {weights.min():.3g} to {weights.max():.3g}; "
                "it takes one static weight: use constant weighting, or the rule 'linear' with TDW"
            )
    combined = linear(groups)
    whitened = group_advantages(combined.flatten(start_dim=-2)).view_as(combined)
    # Every group averages 0, so the batch does, but for rounding: no signal for groups without spread.
    return torch.where(combined == 0, 0.0, whitened)


RULE = Rule(combine, uses_weights=True, static_weights=True)
