"""Shaping rules, one file each: how the advantages of identity and prompt become the one that is trained on.

A new rule is a file with a `RULE`, a line here and a name in `Shaping.rule` of the configuration's sections.
"""

from . import gdpo, geometric, harmonic, linear, maximum, minimum, raw_sum, sars
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
}

__all__ = ["SHAPING_RULES", "Rule", "ScoredGroups"]
