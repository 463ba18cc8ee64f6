"""Gated identity, after DivRL (ECCV 2026): the prompt alone counts, as long as identity is above a threshold."""

from torch import Tensor

from ..calibration import Calibration
from .base import Rule, ScoredGroups

PENALTY = 5.0  # DivRL's factor


def quantity(groups: ScoredGroups) -> Tensor:
    """p - 5 max(0, threshold - i)^2: [P, G]; p and i are calibrated positions, 0 for bad and 1 for good."""
    prompt, identity = (groups.mean_of(role, Calibration.position) for role in ("prompt", "identity"))
    return prompt - PENALTY * (groups.threshold - identity).clamp(min=0).square()


def combine(groups: ScoredGroups) -> Tensor:
    """A = z(quantity), the same at every step: [P, G]."""
    return groups.z(quantity(groups))


RULE = Rule(combine, quantity, uses_calibration=True)
