"""From rewards to one advantage: group z-scores, SARS, and the rules it is compared with.

Axes: P groups (prompts), G images of a group, T trained steps. An image that one reward could not score (NaN)
leaves the statistics of all rewards, and its advantage is NaN, which the objective masks.

Rewards come by name, and each has a role: "identity", "prompt" or "quality". With one reward in each of the first two
the formulas are the paper's. With more, a role's weight is shared equally by its members and the bonus is the mean
over all identity-prompt pairs; quality stands beside all that with a constant weight of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this spread (times |mean|, where that exceeds 1) a group is flat: rounding, not signal.
_FLAT = 1e-6


def mask_unscored(rewards: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rewards [P, G] by name, NaN wherever any of them is NaN; in float32 or better.

    Raises ValueError for no rewards or different shapes.
    """
    shapes = {name: tuple(values.shape) for name, values in rewards.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"rewards have shapes {shapes}; every reward scores the same [groups, images]")
    unscored = torch.stack([values.isnan() for values in rewards.values()]).any(dim=0)
    return {name: _floating(values).masked_fill(unscored, math.nan) for name, values in rewards.items()}


def group_advantages(rewards: Tensor) -> Tensor:
    """Group-relative advantage A = (r - mean) / std, std with ddof = 1; GRPO, arXiv 2402.03300.

    rewards [..., G], the group last; same shape out, in float32 or better (float64 inside). NaN (unscored)
    stays NaN and enters no statistic. Fewer than two scored images, or a std below 1e-6 max(1, |mean|), give
    zeros; that leaves the usual epsilon in the denominator nothing to do. Raises ValueError for infinities.
    """
    rewards = _floating(rewards)
    if rewards.isinf().any():
        raise ValueError("rewards hold an infinity; return NaN for an image that could not be scored")
    values = rewards.double()
    count = (~values.isnan()).sum(dim=-1, keepdim=True)
    mean = values.nanmean(dim=-1, keepdim=True)
    centred = values - mean
    std = (centred.square().nansum(dim=-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    flat = std < _FLAT * mean.abs().clamp(min=1)  # a single scored image has std 0
    advantages = torch.where(flat, 0.0, centred / std).masked_fill(values.isnan(), math.nan)
    return advantages.to(rewards.dtype)


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


def synergy_bonus(prompt_advantage: Tensor, identity_advantage: Tensor, gamma: float) -> Tensor:
    """Synergy-Aware Reward Shaping (SARS), arXiv 2510.18263: b = gamma s tanh(A_prompt A_identity).

    s = +1 if max(A_prompt, A_identity) > 0, else -1: a bonus where both are good, else a penalty. Any shape,
    same shape out; NaN stays NaN. Not zero-mean: at gamma = .4 it averages about -.13 / -.08 / -.04 at reward
    correlations -.5 / 0 / +.5. Raises ValueError for a negative gamma.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma}; use 0 (no bonus) or more, the authors use 0.4")
    s = torch.where(torch.maximum(prompt_advantage, identity_advantage) > 0, 1.0, -1.0)
    return gamma * s * torch.tanh(prompt_advantage * identity_advantage)


def weighted_sum(values_by_role: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
    """Sum over roles of weight times value; each weight broadcasts against its value.

    Raises ValueError unless the weights name exactly the roles.
    """
    if not values_by_role or values_by_role.keys() != weights.keys():
        raise ValueError(f"weights for {sorted(weights)}, values for {sorted(values_by_role)}; the roles must match")
    terms = [weights[role] * values for role, values in values_by_role.items()]
    return sum(terms[1:], start=terms[0])


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


@dataclass(frozen=True)
class ScoredGroups:
    """What a rule sees of the identity and prompt rewards, by name. A rule returns [P, G] or [T, P, G]."""

    rewards: Mapping[str, Tensor]  # [P, G], masked
    advantages: Mapping[str, Tensor]  # [P, G]
    weights: Mapping[str, Tensor]  # [T, 1, 1], they sum to 1

    def stacked(self) -> Tensor:
        """The advantages [rewards, P, G]."""
        return torch.stack(list(self.advantages.values()))


def _linear(groups: ScoredGroups) -> Tensor:
    """w_p A_p + w_i A_i, at every step with its own weights. With the bonus added this is SARS."""
    return weighted_sum(groups.advantages, groups.weights)


def _raw_sum(groups: ScoredGroups) -> Tensor:
    """z-score of w_p r_p + w_i r_i, raw, at every step with its weights: the larger spread rules."""
    return group_advantages(weighted_sum(groups.rewards, groups.weights))


def _min(groups: ScoredGroups) -> Tensor:
    """The worst of the advantages; no weights, the same at every step."""
    return groups.stacked().amin(dim=0)


def _max(groups: ScoredGroups) -> Tensor:
    """The best of the advantages; no weights, the same at every step."""
    return groups.stacked().amax(dim=0)


def _harmonic(groups: ScoredGroups) -> Tensor:
    """z-score of the harmonic mean of softplus(A), which is positive, so without pole; no weights."""
    return group_advantages(1 / (1 / F.softplus(groups.stacked())).mean(dim=0))


def _geometric(groups: ScoredGroups) -> Tensor:
    """z-score of the geometric mean of softplus(A); no weights."""
    return group_advantages(F.softplus(groups.stacked()).log().mean(dim=0).exp())


def _gdpo(groups: ScoredGroups) -> Tensor:
    """GDPO, arXiv 2601.05242: w_p A_p + w_i A_i, whitened over all images of the batch. Static weights.

    Whitened step by step, weights that change with the step would lose the scale they set, so they are
    refused. The batch is all the groups handed in: gather those of every process first.
    """
    for name, weights in groups.weights.items():
        if weights.min() < weights.max():
            raise ValueError(
                f"gdpo with weights of {name!r} from {weights.min():.3g} to {weights.max():.3g}; "
                "it takes one static weight: use constant weighting, or the rule 'linear' with TDW"
            )
    combined = _linear(groups)
    whitened = group_advantages(combined.flatten(start_dim=-2)).view_as(combined)
    # Every group averages 0, so the batch does, but for rounding: no signal for groups without spread.
    return torch.where(combined == 0, 0.0, whitened)


SHAPING_RULES: dict[str, Callable[[ScoredGroups], Tensor]] = {
    "sars": _linear,  # plus the bonus, see USES_BONUS
    "linear": _linear,
    "raw_sum": _raw_sum,
    "min": _min,
    "max": _max,
    "harmonic": _harmonic,
    "geometric": _geometric,
    "gdpo": _gdpo,
}
USES_BONUS = frozenset({"sars"})  # the rules that read gamma and recentre
USES_WEIGHTS = frozenset({"sars", "linear", "raw_sum", "gdpo"})  # the rules that read the prompt weight
STATIC_WEIGHTS = frozenset({"gdpo"})  # of these, the ones that refuse a weight that changes with the step


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
    terms = {"shaped": SHAPING_RULES[rule](groups)} | {name: advantages[name] for name in quality}
    bonus: float | Tensor = 0.0
    if rule in USES_BONUS:
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


def _floating(values: Tensor) -> Tensor:
    """Integers and half precision in float32, float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
