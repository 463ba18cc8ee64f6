"""How far a step's distribution is from that of another policy."""

from torch import Tensor

from ..sde import mean_per_image, positive_std


def kl_to_base(mean: Tensor, base_mean: Tensor, std: float | Tensor) -> Tensor:
    """KL divergence of a step from the base policy [batch]: mean((mu - mu_base)^2) / (2 std^2).

    Flow-GRPO, arXiv 2505.05470: two Gaussians with the same std; the mean is over dimensions, as in `log_prob`. With
    the means that sampled in place of the base's it is the divergence of the trust regions.
    mean, base_mean [batch, ...]; std a scalar, [batch] or [batch, 1, ...]. Differentiable in mean: compute only
    base_mean under no_grad. Raises ValueError if shapes differ, or unless std > 0.
    """
    if mean.shape != base_mean.shape:
        raise ValueError(f"mean {tuple(mean.shape)} and base_mean {tuple(base_mean.shape)} differ in shape")
    return mean_per_image(((mean - base_mean) / positive_std(std, mean)).square()) / 2
