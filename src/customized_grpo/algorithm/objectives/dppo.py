"""Flow-DPPO's mask: an entry is dropped when the step's distribution has moved too far, whatever its ratio."""

import torch
from torch import Tensor

from .entries import Diagnostics, entries


def divergence_objective(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    divergence: Tensor,
    max_divergence: float,
    *,
    scale: float | Tensor = 1.0,
    normaliser: float | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Flow-DPPO, arXiv 2606.11025: mean of -A rho over all entries, those being zero that would move further away:

        A > 0, rho > 1, D > eps    or    A < 0, rho < 1, D > eps

    rho = exp(scale (log_prob - old_log_prob)); D = scale^2 divergence. The square is ours: with it equal changes of
    the velocity give equal D at all steps, as they give equal ratios. At scale 1 this is the published rule.

    divergence       mean |mu - mu_old|^2 / (2 std^2) >= 0 (`kl_to_base` with the means that sampled); no gradient
    max_divergence   eps > 0; 1e-5 in the paper
    All else, what is returned and what is raised: as `clipped_objective`.
    """
    if not max_divergence > 0:
        raise ValueError(f"max_divergence is {max_divergence}; use a positive number, for instance 1e-5")
    if divergence.shape != advantage.shape:
        raise ValueError(f"divergence {tuple(divergence.shape)}, advantage {tuple(advantage.shape)}; make them equal")
    of = entries(log_prob, old_log_prob, advantage, scale=scale)
    far = scale * scale * divergence.detach() > max_divergence
    away = (of.advantage * of.log_ratio.detach()) > 0
    dropped = far & away
    return of.mean(torch.where(dropped, 0.0, -of.advantage * of.ratio), dropped, normaliser)
