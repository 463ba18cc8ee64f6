"""PPO's clip: an entry whose ratio has moved far enough in the direction of its advantage is left alone."""

from torch import Tensor

from .entries import Diagnostics, clipped_losses, entries


def clipped_objective(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip_range: float,
    *,
    scale: float | Tensor = 1.0,
    normaliser: float | None = None,
) -> tuple[Tensor, Diagnostics]:
    """PPO's clipped objective, arXiv 1707.06347: mean of max(-A rho, -A clip(rho, 1 - c, 1 + c)).

    rho = exp(scale (log_prob - old_log_prob)), the probability ratio of new to old policy. The scale acts before the
    clip, so steps that pull equally are also clipped after an equal change of the velocity.

    log_prob, old_log_prob, advantage   the same shape, one entry per (image, step); a NaN advantage masks its entry
    clip_range   c > 0; about 1e-4, because `log_prob` is a mean over dimensions
    scale        of each entry's log-ratio (`step_scales`): a number or a tensor of the same shape
    normaliser   divide the sum by this instead of the number of unmasked entries, so that micro-batches add up
    Returns the scalar loss and the figures of `Entries.mean`.
    Raises ValueError if shapes differ, or unless clip_range > 0 and normaliser > 0.
    """
    of = entries(log_prob, old_log_prob, advantage, scale=scale)
    losses, clipped = clipped_losses(of, clip_range)
    return of.mean(losses, clipped, normaliser)
