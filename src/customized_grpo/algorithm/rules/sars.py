"""Synergy-Aware Reward Shaping (SARS), arXiv 2510.18263: the weighted sum, and a bonus for images good at both."""

import math

import torch
from torch import Tensor

from .base import Rule
from .linear import combine


def synergy_bonus(prompt_advantage: Tensor, identity_advantage: Tensor, gamma: float) -> Tensor:
    """The bonus of SARS, arXiv 2510.18263: b = gamma s tanh(A_prompt A_identity).

    s = +1 if max(A_prompt, A_identity) > 0, else -1: a bonus where both are good, else a penalty. Any shape,
    same shape out; NaN stays NaN. Not zero-mean: at gamma = .4 it averages about -.13 / -.08 / -.04 at reward
    correlations -.5 / 0 / +.5. Raises ValueError for a negative gamma.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma}; use 0 (no bonus) or more, the authors use 0.4")
    s = torch.where(torch.maximum(prompt_advantage, identity_advantage) > 0, 1.0, -1.0)
    return gamma * s * torch.tanh(prompt_advantage * identity_advantage)


RULE = Rule(combine, uses_weights=True, uses_bonus=True)
