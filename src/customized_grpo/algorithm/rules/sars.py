"""Synergy-Aware Reward Shaping (SARS), arXiv 2510.18263: the weighted sum, plus a bonus for images good at both."""

import math

import torch
from torch import Tensor

from .base import Rule
from .linear import combine


def synergy_bonus(prompt_advantage: Tensor, identity_advantage: Tensor, gamma: float) -> Tensor:
    """The bonus b = gamma s tanh(A_p A_i), with s = +1 if max(A_p, A_i) > 0, else -1; arXiv 2510.18263.

    Positive if both are good, negative if one or both are bad. Any shape, same shape out; NaN stays NaN. Its mean is
    not zero: at gamma = .4 about -.13 / -.08 / -.04 for reward correlations of -.5 / 0 / +.5.
    Raises ValueError unless gamma is finite and at least 0.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma}; use 0 (no bonus) or more, the authors use 0.4")
    s = torch.where(torch.maximum(prompt_advantage, identity_advantage) > 0, 1.0, -1.0)
    return gamma * s * torch.tanh(prompt_advantage * identity_advantage)


RULE = Rule(combine, uses_weights=True, uses_bonus=True)  # A = w_p A_p + w_i A_i + b; the caller adds b
