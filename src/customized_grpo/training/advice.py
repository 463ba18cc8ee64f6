"""What a user is told: before a run about its settings, and when a reward falls about what to set instead."""

from __future__ import annotations

from collections.abc import Iterator

from customized_grpo.algorithm import TimeAwareWeights, step_progress
from customized_grpo.config import JOINT_CALIBRATED
from customized_grpo.data.sources import unread_root
from customized_grpo.fields import BUILT_IN
from customized_grpo.sections import Ema, Noise, Objective, Shaping, Weighting
from customized_grpo.training.plan import Plan
from customized_grpo.training.rules import needs_calibration
from customized_grpo.training.watch import EVALUATIONS

OF_TDW = (
    "high",
    "low",
    "final",
    "start",
    "centre",
    "end",
    "rate",
)  # fields of `weighting` that time-aware weights read


def notices(plan: Plan) -> list[str]:
    """What a user should know before the run starts, one sentence each."""
    notices = [*_unused_settings(plan), *_about_weights(plan), *_about_warnings(plan)]
    steps, config = plan.config.evaluation_steps, plan.config
    if steps != config.sampling.num_steps:
        notices.append(
            f"training samples with {config.sampling.num_steps} steps, evaluations with {steps}: the adapter is to be "
            f"used with {steps}, as sampling.json beside it says"
        )
    if config.model.path in BUILT_IN and config.model.path != config.data.source:
        notices.append(
            "the built-in model has seen nothing but its own critters: with other data a run shows that everything "
            "works, but its pictures mean nothing"
        )
    if len({sample.subject for sample in plan.samples}) == 1:
        notices.append("all training samples show one subject: the adapter will overfit to it")
    return notices


def _about_weights(plan: Plan) -> Iterator[str]:
    """What time-aware weights do in this run, if it is not what one expects."""
    if not plan.weighted or not isinstance(plan.weights, TimeAwareWeights):
        return
    reading = plan.config.weighting.progress
    if reading == "position":
        weights = plan.weights_by_position()
        yield (
            "weighting.progress=position copies the authors' release: a step's prompt weight has nothing to do "
            f"with the step. It is {weights.mean():.2f} on average at every step, and between "
            f"{weights.min():.2f} and {weights.max():.2f} at random"
        )
    elif not plan.weights.in_final_phase(step_progress(plan.reachable, plan.sigmas, reading)).any():
        yield (
            f"with {plan.config.sampling.num_steps} steps no trained step reaches the final phase of the "
            f"time-aware weights (progress {plan.weights.end} and later): the last is step "
            f"{plan.reachable[-1]}. Our experiments do without it; to reach it, use more steps or lower "
            "weighting.end"
        )


def _about_warnings(plan: Plan) -> Iterator[str]:
    """What can never happen: warnings without enough evaluations, an average that never takes in the adapter."""
    config, ema = plan.config, plan.config.adapter.ema
    count = config.updates // config.evaluation.every + 1 if config.evaluation.every else 0
    if config.on_degradation != "say" and count < EVALUATIONS:
        yield (
            f"on_degradation={config.on_degradation} can never act: a trend takes {EVALUATIONS} evaluations, and the "
            f"run has {count}; lower evaluation.every, or raise updates"
        )
    steps = config.updates * plan.steps_per_rollout
    if ema.decay is not None and steps < ema.every:
        yield (
            f"adapter-ema will be the untrained adapter: the run has {steps} optimiser steps, and the average takes "
            f"in the adapter after every {ema.every}; lower adapter.ema.every"
        )


def _unused_settings(plan: Plan) -> Iterator[str]:
    """Settings that this run does not read: not an error, since a sweep may keep them."""
    yield from _unused_by_rule(plan)
    yield from _unused_of_weights(plan)
    yield from _unused_of_kind(plan)
    if plan.config.objective.kind == "grpo":
        yield from _unused_trust(plan)
    config = plan.config
    if unread := unread_root(config.data.source, config.data.root):
        yield unread
    if config.adapter.ema.decay is None and config.adapter.ema != Ema():
        yield "adapter.ema.every has no effect without adapter.ema.decay"
    always = config.window.strategy in ("all", "fixed") and len(plan.reachable) == config.sampling.num_steps - 1
    if config.sampling.finish_steps is not None and always:
        yield "sampling.finish_steps has no effect: every step but the last is trained"


def _unused_of_weights(plan: Plan) -> Iterator[str]:
    config, weighting = plan.config, plan.config.weighting
    if weighting.kind == "constant":
        for name in (name for name in OF_TDW if getattr(weighting, name) != getattr(Weighting(), name)):
            yield f"only weighting.kind=tdw reads weighting.{name}: it has no effect"
    if config.shaping.rule == "joint" and config.shaping.joint_share == 1 and weighting != Weighting(kind="constant"):
        yield "with shaping.joint_share=1 nothing is weighted: the section `weighting` has no effect"
    if config.on_degradation == "balance" and weighting.balance != "off":
        yield f"on_degradation=balance has no effect: weighting.balance={weighting.balance} acts from the beginning"


def _unused_by_rule(plan: Plan) -> Iterator[str]:
    shaping, default = plan.config.shaping, Shaping()
    if not plan.weighted and plan.config.weighting != Weighting(kind="constant"):
        yield f'the rule "{shaping.rule}" has no weights: the section `weighting` has no effect'
    if not plan.weighted and plan.config.on_degradation == "balance":
        yield f'the rule "{shaping.rule}" has no weights: on_degradation=balance has no effect'
    for name in ("gamma", "recentre"):
        if not plan.rule.uses_bonus and getattr(shaping, name) != getattr(default, name):
            yield f'the rule "{shaping.rule}" has no bonus: shaping.{name} has no effect'
    for name, reader in (("joint_share", "joint"), ("threshold", "gated")):
        if shaping.rule != reader and getattr(shaping, name) != getattr(default, name):
            yield f'only the rule "{reader}" reads shaping.{name}: it has no effect'
    if shaping.normalise == "group" and shaping.kappa != default.kappa:
        yield "shaping.kappa has no effect without shaping.normalise=pooled"
    if shaping.calibration is not None and not needs_calibration(plan.config):
        effect = f"shaping.calibration only adds the held-out figure {JOINT_CALIBRATED}"
        yield f'the rule "{shaping.rule}" needs no calibration: {effect}'


def _unused_of_kind(plan: Plan) -> Iterator[str]:
    """Settings that the other kind of objective reads."""
    objective, default, noise = plan.config.objective, Objective(), plan.config.noise
    if objective.kind == "grpo":
        for name in ("beta", "old_decay"):
            if getattr(objective, name) != getattr(default, name):
                yield f"only objective.kind=nft reads objective.{name}: it has no effect"
        return
    for name in ("clip_range", "max_divergence"):
        if getattr(objective, name) != getattr(default, name):
            yield f"objective.kind=nft has no ratio to limit: objective.{name} has no effect"
    for name in ("dynamics", "level"):
        if getattr(noise, name) != getattr(Noise(), name):
            yield f"objective.kind=nft samples without noise: noise.{name} has no effect"


def _unused_trust(plan: Plan) -> Iterator[str]:
    objective, default = plan.config.objective, Objective()
    for name, readers in (("clip_range", ("clip", "guard")), ("max_divergence", ("dppo",))):
        if objective.trust not in readers and getattr(objective, name) != getattr(default, name):
            yield f'the trust region "{objective.trust}" does not read objective.{name}: it has no effect'
    if objective.trust == "dppo" and plan.steps_per_rollout == 1:
        yield (
            "with one optimiser step per rollout the policy is the one that sampled: objective.trust=dppo has no "
            "effect; it acts from the second step on (objective.minibatches)"
        )


def restraint(plan: Plan) -> str:
    """What to set, beside a lower learning rate, so that the policy stays nearer to where it came from."""
    objective = plan.config.objective
    if objective.kind == "nft":
        return f"objective.beta={2 * objective.beta:g}"
    return f"objective.kl={2 * objective.kl or 0.01:g}"


def advice(plan: Plan, rising: str, falling: str) -> str:
    """What to set so that a reward of the role `falling` does not fall while one of `rising` rises."""
    weighting, rule = plan.config.weighting, plan.config.shaping.rule
    if {rising, falling} != {"identity", "prompt"}:
        return "train on one of the two, or give the quality reward another weight"
    choices = []
    if plan.weighted:
        names = ("high", "low") if weighting.kind == "tdw" else ("prompt",)
        now = {name: getattr(weighting, name) for name in names}
        change = 0.1 if falling == "prompt" else -0.1
        new = " ".join(f"weighting.{name}={min(max(w + change, 0), 1):g}" for name, w in now.items())
        choices.append(f"{new} (now {' and '.join(f'{w:g}' for w in now.values())})")
    if rule != "joint":
        choices.append("shaping.rule=joint")
    elif weighting.balance == "off":
        choices.append("weighting.balance=proportional")
    return f"start again with {', or with '.join(choices)}"
