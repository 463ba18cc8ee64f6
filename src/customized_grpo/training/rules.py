"""The shaping rule of a run, and what a check must know of it without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from customized_grpo.config import JOINT_CALIBRATED, OF_AVERAGE, RunConfig
from customized_grpo.files import plugins
from customized_grpo.sections import BuiltInRule

if TYPE_CHECKING:
    from customized_grpo.algorithm import Rule

# The built-in rules with `Rule.uses_calibration`, with `Rule.static_weights`, and without `Rule.uses_weights`.
CALIBRATED, STATIC = frozenset({"joint", "gated"}), frozenset({"gdpo"})
UNWEIGHTED = frozenset({"min", "max", "harmonic", "geometric", "gated"})


def rule_of(config: RunConfig) -> Rule:
    """The shaping rule of a run, built in or of an installed package. Raises PluginError."""
    from customized_grpo.algorithm import SHAPING_RULES, Rule

    name = config.shaping.rule
    if name in SHAPING_RULES:
        return SHAPING_RULES[name]
    return plugins.load(plugins.RULES, name, lambda rule: isinstance(rule, Rule), "a customized_grpo.shaping.Rule")


def needs_static_weights(config: RunConfig) -> bool:
    """Whether the rule needs the same prompt weight at every step. Raises PluginError."""
    name = config.shaping.rule
    return name in STATIC if name in get_args(BuiltInRule) else rule_of(config).static_weights


def needs_calibration(config: RunConfig) -> bool:
    """Whether a run has to know what its rewards give to bad and to good pictures. Raises PluginError."""
    name, figure = config.shaping.rule, (config.keep_best or "").removesuffix(OF_AVERAGE)
    asked = config.weighting.balance == "proportional" or figure == JOINT_CALIBRATED
    return asked or (name in CALIBRATED if name in get_args(BuiltInRule) else rule_of(config).uses_calibration)
