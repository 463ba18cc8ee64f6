"""From rewards to one advantage per image and step: the same path for every rule in `rules/`.

Axes: P groups (prompts), G images per group, T trained steps. An image that one reward could not score (NaN) is left
out of the statistics of all rewards, and its advantage is NaN, which the objective masks.

Each reward has a name and a role: "identity", "prompt" or "quality". With one reward for identity and one for prompt
the formulas are the paper's. With more, the rewards of a role share its weight equally, and the bonus is the mean over
all identity-prompt pairs. Quality rewards are added outside of rule and time weights, each with its constant weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .calibration import Calibration
from .groups import group_advantages, mask_unscored, weighted_sum
from .rules import SHAPING_RULES, Rule, ScoredGroups
from .rules.sars import synergy_bonus

OWN = "the rule's own quantity"  # beside the names of rewards, which are identifiers


def reward_advantages(rewards: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each reward's own group advantages [P, G], after `mask_unscored`."""
    return {name: group_advantages(values) for name, values in mask_unscored(rewards).items()}


def role_advantages(rewards: Mapping[str, Tensor], roles: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Group advantages [P, G] by role: the mean over the rewards of that role.

    roles   role of each reward by name; None: the names are the roles
    """
    advantages = reward_advantages(rewards)
    members = _members(advantages, roles)
    return {role: _mean([advantages[name] for name in names]) for role, names in members.items()}


def _members(rewards: Mapping[str, Tensor], roles: Mapping[str, str] | None) -> dict[str, list[str]]:
    """Names of the rewards by role."""
    members: dict[str, list[str]] = {}
    for name in rewards:
        members.setdefault(name if roles is None else roles[name], []).append(name)
    return members


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(dim=0)


def combine_advantages(
    advantages_by_role: Mapping[str, Tensor],
    weights: Mapping[str, float | Tensor],
    bonus: float | Tensor,
    clip: float = 5.0,
) -> Tensor:
    """Final advantage at a step, arXiv 2510.18263: A = sum_k w_k A_k + b, clamped to [-clip, clip].

    advantages_by_role, weights   tensors and floats that broadcast; one weight per role
    bonus                         `synergy_bonus`, or 0
    NaN if any advantage is NaN. Raises ValueError if the roles of the two differ, or for clip <= 0.
    """
    if not clip > 0:
        raise ValueError(f"clip is {clip}; the final advantage needs a positive bound, the authors use 5")
    return (weighted_sum(advantages_by_role, weights) + bonus).clamp(-clip, clip)


def find_rule(rule: str | Rule) -> Rule:
    """The rule of a name; a rule is itself. Raises ValueError for an unknown name."""
    if isinstance(rule, Rule):
        return rule
    if rule not in SHAPING_RULES:
        raise ValueError(f"shaping rule is {rule!r}; use one of {', '.join(SHAPING_RULES)}, or a Rule")
    return SHAPING_RULES[rule]


def _name(rule: Rule) -> str:
    return next((name for name, known in SHAPING_RULES.items() if known is rule), "this rule")


def step_advantages(
    rule: str | Rule,
    rewards: Mapping[str, Tensor],
    prompt_weight: Tensor,
    *,
    roles: Mapping[str, str] | None = None,
    gamma: float = 0.4,
    recentre: bool = False,
    clip: float = 5.0,
    quality_weights: Mapping[str, float] | None = None,
    scale: float = 1.0,
    calibrations: Mapping[str, Calibration] | None = None,
    joint_share: float = 0.5,
    threshold: float = 0.5,
    least_spreads: Mapping[str, float] | None = None,
) -> Tensor:
    """Advantage of every image at every trained step [P, G, T], by any rule.

    rule             a key of SHAPING_RULES, or a rule of your own
    rewards          [P, G] by name; raw, NaN = unscored
    prompt_weight    [T], in the order of the trained steps; identity gets the rest
    roles            "identity", "prompt" or "quality" for each reward by name; None: the names are the roles
    gamma, recentre  of rules with a bonus; recentre subtracts the bonus's mean over the group
    clip             bound on the absolute value of the final advantage
    quality_weights  constant weight of each quality reward's advantage, by name
    scale            factor on the rule's advantage, before bonus and clip; can give two rules the same spread
    calibrations     of the identity and prompt rewards, for rules that use them
    joint_share      share of the joint reward in `joint`, in [0, 1]
    threshold        of `gated`: the identity that is enough, 0 for bad and 1 for good pictures
    least_spreads    least divisor of each reward's advantages, and of the rule's own quantity under OWN; default 0
    NaN for an unscored image. Raises ValueError for an unknown rule, unknown or missing roles, wrong shapes, missing
    calibrations, or weights that change with the step if the rule needs static ones.
    """
    members = _members(rewards, roles)
    quality, least, rule = dict(quality_weights or {}), least_spreads or {}, find_rule(rule)
    _check_request(rule, rewards, members, prompt_weight, quality)
    rewards = mask_unscored(rewards)
    advantages = {
        name: group_advantages(values, least_spread=least.get(name, 0.0)) for name, values in rewards.items()
    }
    groups = _scored_groups(rewards, advantages, members, prompt_weight)
    groups = replace(groups, joint_share=joint_share, threshold=threshold, least_spread=least.get(OWN, 0.0))
    groups = _calibrated(rule, groups, calibrations or {})
    terms = {OWN: rule.combine(groups)} | {name: advantages[name] for name in quality}
    bonus: float | Tensor = 0.0
    if rule.uses_bonus:
        pairs = [(advantages[p], advantages[i]) for p in members["prompt"] for i in members["identity"]]
        bonus = _mean([synergy_bonus(prompt, identity, gamma) for prompt, identity in pairs])
        if recentre:
            bonus = bonus - bonus.nanmean(dim=-1, keepdim=True)
    combined = combine_advantages(terms, {OWN: scale, **quality}, bonus, clip)
    shape = (len(prompt_weight), *next(iter(advantages.values())).shape)
    return combined.expand(shape).movedim(0, -1).contiguous()


def own_quantity(
    rule: str | Rule,
    rewards: Mapping[str, Tensor],
    prompt_weight: Tensor,
    *,
    roles: Mapping[str, str] | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    threshold: float = 0.5,
    least_spreads: Mapping[str, float] | None = None,
) -> Tensor | None:
    """What a rule z-scores in addition to the rewards, [P, G] or [T, P, G]; None if it does not.

    Its running spread is needed for pooled normalisation. Arguments and errors as in `step_advantages`.
    """
    rule, least = find_rule(rule), least_spreads or {}
    if (quantity := rule.quantity) is None:
        return None
    rewards = mask_unscored(rewards)
    advantages = {
        name: group_advantages(values, least_spread=least.get(name, 0.0)) for name, values in rewards.items()
    }
    groups = _scored_groups(rewards, advantages, _members(rewards, roles), prompt_weight)
    return quantity(_calibrated(rule, replace(groups, threshold=threshold), calibrations or {}))


def _scored_groups(
    rewards: Mapping[str, Tensor],
    advantages: Mapping[str, Tensor],
    members: Mapping[str, Sequence[str]],
    prompt_weight: Tensor,
) -> ScoredGroups:
    """The rule's input: identity and prompt rewards, each with its share of its role's weight."""
    weight = prompt_weight.to(next(iter(advantages.values())))[:, None, None]
    of_role = {"prompt": weight, "identity": 1 - weight}
    roles = {name: role for role in of_role for name in members[role]}
    shares = {name: of_role[role] / len(members[role]) for name, role in roles.items()}
    return ScoredGroups({n: rewards[n] for n in roles}, {n: advantages[n] for n in roles}, shares, roles)


def _calibrated(rule: Rule, groups: ScoredGroups, calibrations: Mapping[str, Calibration]) -> ScoredGroups:
    """The groups with the calibrations that the rule uses. Raises ValueError if one is missing."""
    if not rule.uses_calibration:
        return groups
    if missing := groups.roles.keys() - calibrations.keys():
        raise ValueError(f"{_name(rule)} needs calibrations of all rewards; {', '.join(sorted(missing))} has none")
    return replace(groups, calibrations={name: calibrations[name] for name in groups.roles})


def _check_request(
    rule: Rule,
    rewards: Mapping[str, Tensor],
    members: Mapping[str, list[str]],
    prompt_weight: Tensor,
    quality_weights: Mapping[str, float],
) -> None:
    if set(members) - {"quality"} != {"prompt", "identity"}:
        raise ValueError(
            f"rewards with the roles {sorted(members)}; give 'prompt' and 'identity' (and 'quality'). "
            "To train on one of the two, set a constant prompt weight of 1 or 0"
        )
    if set(quality_weights) != set(members.get("quality", ())):
        raise ValueError(
            f"quality weights for {sorted(quality_weights)}, quality rewards {sorted(members.get('quality', ()))}; "
            "give each quality reward a weight"
        )
    shape = tuple(next(iter(rewards.values())).shape)
    if len(shape) != 2 or prompt_weight.dim() != 1:
        raise ValueError(
            f"rewards of shape {shape} and prompt_weight of shape {tuple(prompt_weight.shape)}; "
            "they must be [groups, images] and [trained steps]"
        )
    low, high = prompt_weight.min(), prompt_weight.max()
    if rule.static_weights and low < high:
        raise ValueError(
            f"{_name(rule)} with prompt weights from {low:.3g} to {high:.3g}; it needs the same weight at every step: "
            "use constant weighting, or the rule 'linear' with TDW"
        )


def conflict_diagnostics(prompt_advantage: Tensor, identity_advantage: Tensor) -> dict[str, float]:
    """How far the two rewards agree inside groups, from their advantages [P, G] (NaN = unscored).

    both_good, conflict, both_bad   shares of scored images with both, one, none of the advantages above 0
    conflict_excess                 conflict - .5: independent rewards give 50 % conflict, 25 % and 25 %
    correlation                     within-group correlation of the rewards, pooled over groups, in [-1, 1]
    flat_groups                     number of groups in which a reward has no spread, or fewer than two scored
                                    images; they are left out of all the above
    If all groups are flat, everything except flat_groups is NaN. Raises ValueError if shapes differ.
    """
    if prompt_advantage.shape != identity_advantage.shape:
        shapes = tuple(prompt_advantage.shape), tuple(identity_advantage.shape)
        raise ValueError(f"advantages have shapes {shapes}; both must be [groups, images]")
    prompt_spread, identity_spread = (
        (advantage.nan_to_num() != 0).any(dim=-1) for advantage in (prompt_advantage, identity_advantage)
    )
    spread = prompt_spread & identity_spread
    scored = ~(prompt_advantage + identity_advantage).isnan() & spread[..., None]
    prompt, identity = prompt_advantage[scored].double(), identity_advantage[scored].double()
    good = (prompt > 0).int() + (identity > 0).int()
    both_bad, conflict, both_good = ((good == n).double().mean().item() for n in (0, 1, 2))
    # Group z-scores have mean 0 in every group, so their pooled Pearson correlation is a cosine.
    norm = (prompt.square().sum() * identity.square().sum()).sqrt()
    return {
        "both_good": both_good,
        "conflict": conflict,
        "both_bad": both_bad,
        "conflict_excess": conflict - 0.5,
        "correlation": ((prompt * identity).sum() / norm).item(),
        "flat_groups": float((~spread).sum()),
    }
