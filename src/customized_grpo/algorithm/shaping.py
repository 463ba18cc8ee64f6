"""From rewards to one advantage per image and step: the same path for every rule of `rules/`.

Axes: P groups (prompts), G images of a group, T trained steps. An image that one reward could not score (NaN)
leaves the statistics of all rewards, and its advantage is NaN, which the objective masks.

Rewards come by name, and each has a role: "identity", "prompt" or "quality". With one reward in each of the first two
the formulas are the paper's. With more, a role's weight is shared equally by its members and the bonus is the mean
over all identity-prompt pairs; quality stands beside all that with a constant weight of its own.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .groups import group_advantages, mask_unscored, weighted_sum
from .rules import SHAPING_RULES, ScoredGroups
from .rules.sars import synergy_bonus


def reward_advantages(rewards: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each reward's own group advantages [P, G], after `mask_unscored`."""
    return {name: group_advantages(values) for name, values in mask_unscored(rewards).items()}


def role_advantages(rewards: Mapping[str, Tensor], roles: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Group advantages [P, G] by role; of several rewards in one role, the mean.

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
    NaN where any advantage is NaN. Raises ValueError for a role without weight (or the reverse) or clip <= 0.
    """
    if not clip > 0:
        raise ValueError(f"clip is {clip}; the final advantage needs a positive bound, the authors use 5")
    return (weighted_sum(advantages_by_role, weights) + bonus).clamp(-clip, clip)


def step_advantages(
    rule: str,
    rewards: Mapping[str, Tensor],
    prompt_weight: Tensor,
    *,
    roles: Mapping[str, str] | None = None,
    gamma: float = 0.4,
    recentre: bool = False,
    clip: float = 5.0,
    quality_weights: Mapping[str, float] | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Advantage of every image at every trained step [P, G, T]: all rules, one path.

    rule             a key of SHAPING_RULES
    rewards          [P, G] by name; raw, NaN = unscored
    prompt_weight    [T], in the order of the trained steps; the identity gets the rest
    roles            "identity", "prompt" or "quality" for each reward by name; None: the names are the roles
    gamma, recentre  of "sars" only; recentre subtracts from the bonus its mean over the group
    clip             bound of the final advantage
    quality_weights  weight of each quality reward's advantage, constant, outside rule and time weights
    scale            factor on the rule's advantage, before bonus and clip: gives one rule the spread of another
    NaN where an image is unscored. Raises ValueError for an unknown rule, other roles or wrong shapes.
    """
    members = _members(rewards, roles)
    quality = dict(quality_weights or {})
    _check_request(rule, rewards, members, prompt_weight, quality)
    rewards = mask_unscored(rewards)
    advantages = {name: group_advantages(values) for name, values in rewards.items()}
    weight = prompt_weight.to(next(iter(advantages.values())))[:, None, None]
    shares = {
        name: of_role / len(members[role])
        for role, of_role in (("prompt", weight), ("identity", 1 - weight))
        for name in members[role]
    }
    groups = ScoredGroups({n: rewards[n] for n in shares}, {n: advantages[n] for n in shares}, shares)
    terms = {"shaped": SHAPING_RULES[rule].combine(groups)} | {name: advantages[name] for name in quality}
    bonus: float | Tensor = 0.0
    if SHAPING_RULES[rule].uses_bonus:
        pairs = [(advantages[p], advantages[i]) for p in members["prompt"] for i in members["identity"]]
        bonus = _mean([synergy_bonus(prompt, identity, gamma) for prompt, identity in pairs])
        if recentre:
            bonus = bonus - bonus.nanmean(dim=-1, keepdim=True)
    combined = combine_advantages(terms, {"shaped": scale, **quality}, bonus, clip)
    shape = (len(prompt_weight), *next(iter(advantages.values())).shape)
    return combined.expand(shape).movedim(0, -1).contiguous()


def _check_request(
    rule: str,
    rewards: Mapping[str, Tensor],
    members: Mapping[str, list[str]],
    prompt_weight: Tensor,
    quality_weights: Mapping[str, float],
) -> None:
    if rule not in SHAPING_RULES:
        raise ValueError(f"shaping rule is {rule!r}; use one of {', '.join(SHAPING_RULES)}")
    if set(members) - {"quality"} != {"prompt", "identity"}:
        raise ValueError(
            f"rewards for the roles {sorted(members)}; give 'prompt' and 'identity' (and 'quality'). "
            "To train on one of the two, set a constant prompt weight of 1 or 0"
        )
    if set(quality_weights) != set(members.get("quality", ())):
        raise ValueError(
            f"quality weights for {sorted(quality_weights)}, quality rewards {sorted(members.get('quality', ()))}; "
            "give each quality reward its weight"
        )
    shape = tuple(next(iter(rewards.values())).shape)
    if len(shape) != 2 or prompt_weight.dim() != 1:
        raise ValueError(
            f"rewards of shape {shape} and prompt_weight of shape {tuple(prompt_weight.shape)}; "
            "they must be [groups, images] and [trained steps]"
        )


def conflict_diagnostics(prompt_advantage: Tensor, identity_advantage: Tensor) -> dict[str, float]:
    """How the two rewards get on inside groups, from their advantages [P, G] (NaN = unscored).

    both_good, conflict, both_bad   shares of scored images with both, one, none of the advantages above 0
    conflict_excess                 conflict - .5: independent rewards give 50 % conflict, 25 % and 25 %
    correlation                     within-group correlation of the rewards, pooled over groups, in [-1, 1]
    flat_groups                     groups where a reward has no spread (or fewer than two scored images);
                                    they enter none of the above
    Without any other group, all but flat_groups is NaN. Raises ValueError for different shapes.
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
