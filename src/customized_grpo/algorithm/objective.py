"""What is minimised: the clipped ratio objective, and the KL divergence to the base policy."""

import torch
from torch import Tensor

from .sde import mean_per_image, positive_std


def clipped_objective(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip_range: float,
    *,
    weight: float | Tensor | None = None,
    normaliser: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped objective, arXiv 1707.06347: mean of max(-A rho, -A clip(rho, 1 - c, 1 + c)).

    rho = exp(log_prob - old_log_prob), the probability ratio of new to old policy.

    log_prob, old_log_prob, advantage   the same shape, one entry per (image, step); a NaN advantage masks its entry
    clip_range   c > 0; about 1e-4, because `log_prob` is a mean over dimensions
    weight       factor on each entry's loss (`step_scales`): a number or a tensor of the same shape
    normaliser   divide the sum by this instead of the number of unmasked entries, so that micro-batches add up
    Returns the scalar loss and detached diagnostics over the unmasked entries:
        ratio_mean, ratio_max_deviation   mean of rho, largest |rho - 1| (0 before the first update)
        clip_fraction                     share of entries whose gradient is zero because of the clip
        approx_kl                         mean of rho - 1 - log rho >= 0
        count                             number of these entries
    If every entry is masked, the loss is a zero that still has a graph, and all diagnostics except count are NaN.
    Raises ValueError if shapes differ, or unless clip_range > 0 and normaliser > 0.
    """
    shapes = [tuple(values.shape) for values in (log_prob, old_log_prob, advantage)]
    if isinstance(weight, Tensor) and weight.dim() > 0:
        shapes.append(tuple(weight.shape))
    if len(set(shapes)) != 1:
        raise ValueError(f"log_prob, old_log_prob, advantage (and weight) have shapes {shapes}; they must be equal")
    if not clip_range > 0:
        raise ValueError(f"clip_range is {clip_range}; use a positive number, for instance 1e-4")
    if normaliser is not None and not normaliser > 0:
        raise ValueError(f"normaliser is {normaliser}; use the number of entries in the whole update")

    scored = ~advantage.isnan()
    # Mask before multiplying: 0 * NaN is NaN, in the loss and in its gradient.
    advantage = torch.where(scored, advantage, 0.0)
    log_ratio = torch.where(scored, log_prob - old_log_prob.detach(), 0.0)
    ratio = log_ratio.exp()
    unclipped = -advantage * ratio
    clipped = -advantage * ratio.clamp(1 - clip_range, 1 + clip_range)
    losses = torch.maximum(unclipped, clipped)
    if weight is not None:
        losses = losses * weight
    count = scored.sum()
    loss = losses.sum() / (count.clamp(min=1) if normaliser is None else normaliser)

    with torch.no_grad():
        deviation = log_ratio.expm1()[scored]  # rho - 1 without the rounding of exp near 1
        diagnostics = {
            "ratio_mean": 1 + deviation.mean(),
            "ratio_max_deviation": deviation.abs().max() if count > 0 else deviation.mean(),
            "clip_fraction": (clipped > unclipped)[scored].float().mean(),
            "approx_kl": (deviation - log_ratio[scored]).mean(),
            "count": count,
        }
    return loss, diagnostics


def kl_to_base(mean: Tensor, base_mean: Tensor, std: float | Tensor) -> Tensor:
    """KL divergence of a step from the base policy [batch]: mean((mu - mu_base)^2) / (2 std^2).

    Flow-GRPO, arXiv 2505.05470: two Gaussians with the same std; the mean is over dimensions, as in `log_prob`.
    mean, base_mean [batch, ...]; std a scalar, [batch] or [batch, 1, ...]. Differentiable in mean: compute only
    base_mean under no_grad. Raises ValueError if shapes differ, or unless std > 0.
    """
    if mean.shape != base_mean.shape:
        raise ValueError(f"mean {tuple(mean.shape)} and base_mean {tuple(base_mean.shape)} differ in shape")
    return mean_per_image(((mean - base_mean) / positive_std(std, mean)).square()) / 2
