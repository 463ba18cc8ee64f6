"""What the trust regions share: masked entries and their ratio, the mean of their losses, and the figures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Diagnostics = dict[str, Tensor]


@dataclass(frozen=True)
class Entries:
    """One entry per (image, step), all tensors of one shape; a masked entry has advantage 0 and ratio 1."""

    advantage: Tensor
    log_ratio: Tensor  # of new to old policy, scaled
    scored: Tensor  # bool; False where the advantage was NaN

    @property
    def ratio(self) -> Tensor:
        return self.log_ratio.exp()

    def mean(self, losses: Tensor, dropped: Tensor, normaliser: float | None) -> tuple[Tensor, Diagnostics]:
        """The mean of the entries' losses, and the detached figures of the scored ones.

        dropped     which entries the trust region leaves without a gradient
        normaliser  divide the sum by this instead of the number of scored entries, so that micro-batches add up

        ratio_mean, ratio_max_deviation   mean of rho, largest |rho - 1|; rho is the scaled ratio
        clip_fraction                     share of dropped entries
        approx_kl                         mean of rho - 1 - log rho >= 0
        count                             number of scored entries; if it is 0, the loss is a zero that has a graph,
                                          and all other figures are NaN
        Raises ValueError unless normaliser > 0.
        """
        if normaliser is not None and not normaliser > 0:
            raise ValueError(f"normaliser is {normaliser}; use the number of entries in the whole update")
        count = self.scored.sum()
        loss = losses.sum() / (count.clamp(min=1) if normaliser is None else normaliser)
        with torch.no_grad():
            deviation = self.log_ratio.expm1()[self.scored]  # rho - 1 without the rounding of exp near 1
            figures = {
                "ratio_mean": 1 + deviation.mean(),
                "ratio_max_deviation": deviation.abs().max() if count > 0 else deviation.mean(),
                "clip_fraction": dropped[self.scored].float().mean(),
                "approx_kl": (deviation - self.log_ratio[self.scored]).mean(),
                "count": count,
            }
        return loss, figures


def entries(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    *,
    scale: float | Tensor = 1.0,
    bias: Tensor | None = None,
) -> Entries:
    """Entries with the log-ratio scale (log_prob - old_log_prob + bias); a NaN advantage masks its entry.

    scale  a number or a tensor of the entries' shape
    Raises ValueError if shapes differ.
    """
    tensors = [log_prob, old_log_prob, advantage, *([] if bias is None else [bias])]
    if isinstance(scale, Tensor) and scale.dim() > 0:
        tensors.append(scale)
    shapes = [tuple(values.shape) for values in tensors]
    if len(set(shapes)) != 1:
        names = "log_prob, old_log_prob, advantage (and divergence, scale)"
        raise ValueError(f"{names} have shapes {shapes}; they must be equal")
    scored = ~advantage.isnan()
    log_ratio = log_prob - old_log_prob.detach()
    if bias is not None:
        log_ratio = log_ratio + bias
    # Mask before multiplying with the advantage: 0 * NaN is NaN, in the loss and in its gradient.
    return Entries(torch.where(scored, advantage, 0.0), torch.where(scored, scale * log_ratio, 0.0), scored)


def clipped_losses(of: Entries, clip_range: float) -> tuple[Tensor, Tensor]:
    """max(-A rho, -A clip(rho, 1 - c, 1 + c)) of each entry, and whether the clip holds it.

    PPO, arXiv 1707.06347. Raises ValueError unless clip_range > 0.
    """
    if not clip_range > 0:
        raise ValueError(f"clip_range is {clip_range}; use a positive number, for instance 1e-4")
    unclipped = -of.advantage * of.ratio
    clipped = -of.advantage * of.ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(unclipped, clipped), clipped > unclipped
