"""Shaping rules, one file each: how the advantages of identity and prompt become the one that is trained on.

A new rule is a file with a `RULE`, an entry in the table below, and its name in `Shaping.rule` of `sections.py`.

Notation in these files: A_p and A_i are the group advantages of prompt and identity, r_p and r_i their raw rewards,
w_p and w_i = 1 - w_p their weights at a step; z(x) is `group_advantages`, the z-score within a group; q_p and q_i are
calibrated qualities (`calibration.py`). If a role has several rewards, sums, means and extremes run over all of them,
each with its share of the role's weight. With pooled normalisation every z divides by no less than a least spread.
"""

from . import gated, gdpo, geometric, harmonic, joint, linear, maximum, minimum, raw_sum, sars
from .base import Rule, ScoredGroups

SHAPING_RULES: dict[str, Rule] = {
    "sars": sars.RULE,
    "linear": linear.RULE,
    "raw_sum": raw_sum.RULE,
    "min": minimum.RULE,
    "max": maximum.RULE,
    "harmonic": harmonic.RULE,
    "geometric": geometric.RULE,
    "gdpo": gdpo.RULE,
    "joint": joint.RULE,
    "gated": gated.RULE,
}

__all__ = ["SHAPING_RULES", "Rule", "ScoredGroups"]
