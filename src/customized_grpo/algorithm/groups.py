"""Rewards relative to the other images of a group.

Axes: P groups (prompts), G images per group. NaN means that an image could not be scored.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# A group whose spread is below this (times |mean|, if that exceeds 1) is flat: rounding errors, not signal.
_FLAT = 1e-6


def mask_unscored(rewards: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rewards [P, G] by name, in float32 or better, with NaN for every image that any of them could not score.

    Raises ValueError if there are no rewards, or if their shapes differ.
    """
    shapes = {name: tuple(values.shape) for name, values in rewards.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"rewards have shapes {shapes}; every reward scores the same [groups, images]")
    unscored = torch.stack([values.isnan() for values in rewards.values()]).any(dim=0)
    return {name: _floating(values).masked_fill(unscored, math.nan) for name, values in rewards.items()}


def group_advantages(rewards: Tensor, *, least_spread: float = 0.0) -> Tensor:
    """Group-relative advantage A = (r - mean) / max(std, least_spread), std with ddof = 1; GRPO, arXiv 2402.03300.

    rewards [..., G], the group last; same shape out, in float32 or better (float64 inside). NaN (unscored)
    stays NaN and enters no statistic. Groups with fewer than two scored images, or with a std below
    1e-6 max(1, |mean|), give zeros, so the denominator needs no epsilon. Raises ValueError for infinities.

    least_spread   0 is GRPO; above 0, groups whose members hardly differ pull less than others (`normalise: pooled`)
    """
    rewards = _floating(rewards)
    if rewards.isinf().any():
        raise ValueError("rewards hold an infinity; return NaN for an image that could not be scored")
    values = rewards.double()
    mean, std = _statistics(values)
    flat = std < _FLAT * mean.abs().clamp(min=1)  # a single scored image has std 0
    scaled = (values - mean) / std.clamp(min=least_spread)
    return torch.where(flat, 0.0, scaled).masked_fill(values.isnan(), math.nan).to(rewards.dtype)


def group_spread(values: Tensor) -> float:
    """Mean over groups of the standard deviation inside a group, ddof = 1; NaN without a group of two scored images.

    values [..., G], the group last; NaN (unscored) enters no statistic.
    """
    values = values.double()
    several = (~values.isnan()).sum(dim=-1) > 1
    return _statistics(values)[1].squeeze(-1)[several].mean().item()


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [..., 1] of the scored values [..., G]; the deviation of one value is 0."""
    count = (~values.isnan()).sum(dim=-1, keepdim=True)
    mean = values.nanmean(dim=-1, keepdim=True)
    return mean, ((values - mean).square().nansum(dim=-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()


def weighted_sum(values_by_role: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
    """Sum over roles of weight times value; each weight broadcasts against its value.

    Raises ValueError unless weights and values have the same roles, at least one.
    """
    if not values_by_role or values_by_role.keys() != weights.keys():
        raise ValueError(f"weights for {sorted(weights)}, values for {sorted(values_by_role)}; the roles must match")
    terms = [weights[role] * values for role, values in values_by_role.items()]
    return sum(terms[1:], start=terms[0])


def _floating(values: Tensor) -> Tensor:
    """In float32 or better: integers and half precision become float32, float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
