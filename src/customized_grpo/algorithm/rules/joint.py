"""Calibrated joint reward: a picture is worth something only if it is good at both."""

from torch import Tensor

from ..calibration import Calibration
from .base import Rule, ScoredGroups
from .linear import combine as linear


def quantity(groups: ScoredGroups) -> Tensor:
    """q_p q_i: the product of the two calibrated qualities [P, G], each the mean over the rewards of its role."""
    return groups.mean_of("prompt", Calibration.quality) * groups.mean_of("identity", Calibration.quality)


def combine(groups: ScoredGroups) -> Tensor:
    """A = s z(q_p q_i) + (1 - s) (w_p A_p + w_i A_i), with the weights of each step; s is the joint share: [T, P, G].

    z-scores alone do not know whether the best picture of a group is good at all; the product does. A copy of the
    reference follows no prompt and earns nothing. Without the second term (s = 1) groups in which no picture has any
    of one quality would be flat.
    """
    share = groups.joint_share
    return share * groups.z(quantity(groups)) + (1 - share) * linear(groups)


RULE = Rule(combine, quantity, uses_weights=True, uses_calibration=True)
