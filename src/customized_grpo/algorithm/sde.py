"""One denoising step as a Gaussian policy N(mean, std^2 I). Rollout and update use the same function:

rollout   mean, std = step_distribution(...);  sample = mean + std * noise;  log_prob(sample, mean, std)
update    mean, std = step_distribution(...);  log_prob(stored sample, mean, std)
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .schedule import trainable_indices

Dynamics = Literal["dance", "flow", "cps", "ode"]
StepScaleMode = Literal["none", "equal"]


class _Coefficients(NamedTuple):
    """mean = latents * x + velocity * v; all three float64 on the CPU, in the shape of sigma."""

    latents: Tensor
    velocity: Tensor
    std: Tensor


def _coefficients(
    dynamics: Dynamics,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    noise_level: float,
    sigma_max: float | Tensor,
) -> _Coefficients:
    """The four dynamics, written as coefficients of x and v (x0^ = x - sigma v, x1^ = x + (1 - sigma) v).

    dance, flow, ode   mean = x + dt (v + g^2 / (2 sigma) x1^),  std = g sqrt(-dt),  dt = sigma' - sigma < 0
        dance  g = noise_level                                  DanceGRPO, arXiv 2505.07818
        flow   g = noise_level sqrt(sigma / (1 - sigma))        Flow-GRPO, arXiv 2505.05470
        ode    g = 0                                            Euler
    cps                mean = (1 - sigma') x0^ + sigma' cos(a pi/2) x1^,  std = sigma' sin(a pi/2)
                       Flow-CPS, arXiv 2509.05952; the cosine is sqrt(sigma'^2 - std^2) / sigma'
    """
    sigma, sigma_next, sigma_max = (
        # float64 on the CPU, because not every accelerator has float64; these are only a few numbers.
        torch.as_tensor(value).detach().to("cpu", torch.float64)
        for value in (sigma, sigma_next, sigma_max)
    )
    _check_step(dynamics, sigma, sigma_next, noise_level, sigma_max)
    if dynamics == "cps":
        angle = noise_level * math.pi / 2
        to_x0, to_x1, std = 1 - sigma_next, sigma_next * math.cos(angle), sigma_next * math.sin(angle)
        return _Coefficients(to_x0 + to_x1, (1 - sigma) * to_x1 - sigma * to_x0, std)
    if dynamics == "flow":
        # At sigma = 1 the denominator would be zero; sigma_1 instead makes the first std equal noise_level.
        g_squared = noise_level**2 * sigma / (1 - torch.minimum(sigma, sigma_max))
    else:
        g_squared = torch.full_like(sigma, noise_level**2 if dynamics == "dance" else 0.0)
    dt = sigma_next - sigma
    to_x1 = g_squared / (2 * sigma)
    return _Coefficients(1 + dt * to_x1, dt * (1 + to_x1 * (1 - sigma)), (-dt * g_squared).sqrt())


def _check_step(dynamics: str, sigma: Tensor, sigma_next: Tensor, noise_level: float, sigma_max: Tensor) -> None:
    if dynamics not in get_args(Dynamics):
        raise ValueError(f"dynamics is {dynamics!r}; use one of {', '.join(get_args(Dynamics))}")
    if not ((sigma_next >= 0) & (sigma_next < sigma) & (sigma <= 1)).all():
        raise ValueError(
            f"a step from sigma {sigma.tolist()} to {sigma_next.tolist()}; sigma must fall, between 1 and 0"
        )
    if not 0 <= noise_level < math.inf or (dynamics == "cps" and noise_level > 1):
        raise ValueError(f"noise_level is {noise_level}; use 0 or more, at most 1 with 'cps'")
    if dynamics == "flow" and not ((sigma_max > 0) & (sigma_max < 1)).all():
        raise ValueError(f"sigma_max is {sigma_max.tolist()}; pass schedule[1], between 0 and 1")


def step_distribution(
    dynamics: Dynamics,
    latents: Tensor,
    velocity: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    noise_level: float,
    sigma_max: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents at sigma_next, given latents and velocity at sigma.

    latents, velocity      [batch, ...], any floating dtype; half precision is computed in float32
    sigma, sigma_next      scalar, or [batch] if the images of a batch are at different steps
    noise_level            eta of "dance", a of "flow" and "cps" (at most 1 for "cps"); "ode" ignores it
    sigma_max              schedule[1]; only "flow" reads it
    Returns mean [batch, ...] and std, 0-d or [batch, 1, ...], on the latents' device, in float32 or better;
    differentiable in latents and velocity. Without noise, and with float32 sigmas, "dance", "flow" and "ode" equal
    the Euler step of diffusers bit for bit, and "cps" equals it up to rounding.
    Keep the grid on the CPU: sigmas on an accelerator cost a synchronisation.
    Raises ValueError if shapes do not match, sigma does not fall, or the noise level is out of range.
    """
    if latents.shape != velocity.shape:
        raise ValueError(f"latents {tuple(latents.shape)}, velocity {tuple(velocity.shape)}; make them equal")
    dtype = torch.promote_types(latents.dtype, torch.float32)
    coefficients = _coefficients(dynamics, sigma, sigma_next, noise_level, sigma_max)
    if coefficients.std.shape not in ((), latents.shape[:1]):
        raise ValueError(
            f"sigmas of shape {tuple(coefficients.std.shape)} for latents {tuple(latents.shape)}; "
            "pass a scalar or one sigma per image"
        )
    latents, velocity = latents.to(dtype), velocity.to(dtype)
    a, b, std = (per_image(value, latents) for value in coefficients)
    return a * latents + b * velocity, std


def step_gradient_factor(
    dynamics: Dynamics,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    noise_level: float,
    sigma_max: float | Tensor,
) -> Tensor:
    """|d mean / d velocity| / std: how strongly a step's log-probability pulls on the velocity.

    Arguments as in `step_distribution`. Returns float64 > 0 in the shape of sigma. Raises ValueError if
    std = 0 ("ode", noise level 0, "cps" on the step to sigma 0).
    """
    coefficients = _coefficients(dynamics, sigma, sigma_next, noise_level, sigma_max)
    if not (coefficients.std > 0).all():
        raise ValueError(
            f"{dynamics} at noise_level {noise_level} has a step of std 0, which has no density; "
            "use a stochastic step with noise"
        )
    return coefficients.velocity.abs() / coefficients.std


def step_scales(
    mode: StepScaleMode,
    dynamics: Dynamics,
    sigmas: Tensor,
    steps: Sequence[int] | Tensor,
    noise_level: float,
    *,
    over: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Factor [len(steps)] on each trained step's log-ratio, float64; its square is the factor on a KL divergence.

    "none"   1 for every step (the authors).
    "equal"  1 / step_gradient_factor, so that an equal change of the velocity changes the scaled ratio, and the scaled
             divergence, equally at every step: the weights alone decide how hard a step pulls. Divided by
             its mean over the true indices `over` (default: steps). If each update trains a different window,
             pass all steps that windows can reach, so that windows are comparable.
    Raises ValueError for an index that cannot be trained, a step without noise, or an unknown mode.
    """
    trained = trainable_indices(steps, len(sigmas) - 1)
    if mode == "none":
        return torch.ones(len(trained), dtype=torch.float64)
    if mode != "equal":
        raise ValueError(f"step scale is {mode!r}; use 'none' or 'equal'")
    reference = trained if over is None else trainable_indices(over, len(sigmas) - 1)

    def inverse(at: Tensor) -> Tensor:
        return 1 / step_gradient_factor(dynamics, sigmas[at], sigmas[at + 1], noise_level, sigmas[1])

    return inverse(trained) / inverse(reference).mean()


def log_prob(sample: Tensor, mean: Tensor, std: float | Tensor) -> Tensor:
    """Log-density of sample [batch, ...] under N(mean, std^2), mean over the non-batch dimensions: [batch].

    The full density, including its normaliser. A mean, not a sum: that is why clip ranges are about 1e-4.
    std is a scalar, [batch] or [batch, 1, ...]. Computed in float32 or better. Raises ValueError if shapes
    differ, or unless std > 0.
    """
    if sample.shape != mean.shape:
        raise ValueError(f"sample {tuple(sample.shape)}, mean {tuple(mean.shape)}; make them equal")
    sample = sample.to(torch.promote_types(sample.dtype, torch.float32))
    std = positive_std(std, sample)
    deviation = (sample - mean) / std
    return mean_per_image(-0.5 * deviation.square() - std.log() - 0.5 * math.log(2 * math.pi))


def positive_std(std: float | Tensor, like: Tensor) -> Tensor:
    """std, shaped to broadcast against `like` [batch, ...]. Raises ValueError unless it is positive everywhere."""
    std = per_image(torch.as_tensor(std, dtype=like.dtype), like)
    if not (std > 0).all():
        raise ValueError(f"std is {std.min().item():g}; an ODE step has no density, use stochastic steps only")
    return std


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """[batch] becomes [batch, 1, ...], other shapes stay; with the dtype and device of `like`."""
    return (values.reshape(-1, *[1] * (like.dim() - 1)) if values.dim() == 1 else values).to(like)


def mean_per_image(values: Tensor) -> Tensor:
    """Mean of [batch, ...] over all dimensions except the first: [batch]."""
    return values.reshape(len(values), -1).mean(dim=1)
