"""GRPO-Guard's ratio: without the bias and the spread that a step's noise gives it, then PPO's clip."""

from torch import Tensor

from .entries import Diagnostics, clipped_losses, entries


def guarded_objective(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    divergence: Tensor,
    std: float | Tensor,
    clip_range: float,
    *,
    normaliser: float | None = None,
) -> tuple[Tensor, Diagnostics]:
    """GRPO-Guard's regulated clip, arXiv 2510.22319: `clipped_objective` with the ratio

        rho = exp((log_prob - old_log_prob + b) std),    b = mean |mu - mu_old|^2 / (2 std^2)

    For a sample mu_old + std z the log-ratio is mean(z (mu - mu_old)) / std - b. Its mean -b is below 0 and its spread
    differs between steps; the exponent above is mean(z (mu - mu_old)), which has mean 0 at every step. It has a scale,
    std, and therefore takes no `step_scale`. The paper's further factor on each step's gradient is left out.

    divergence   b >= 0, with its gradient (`kl_to_base` with the means that sampled)
    std          of the step, sigma_t sqrt(-dt): a number or a tensor of the same shape
    All else, what is returned and what is raised: as `clipped_objective`.
    """
    of = entries(log_prob, old_log_prob, advantage, scale=std, bias=divergence)
    losses, clipped = clipped_losses(of, clip_range)
    return of.mean(losses, clipped, normaliser)
