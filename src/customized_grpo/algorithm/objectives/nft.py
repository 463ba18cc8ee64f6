"""DiffusionNFT, arXiv 2509.16117: learn from noised pictures what better ones have that worse ones lack.

It needs no log-probabilities, and pictures may come from any solver. v_old is the velocity of the policy that sampled.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..schedule import trainable_indices
from ..sde import StepScaleMode, mean_per_image, per_image
from .entries import Diagnostics


def nft_objective(
    velocity: Tensor,
    old_velocity: Tensor,
    latents: Tensor,
    clean: Tensor,
    sigma: float | Tensor,
    advantage: Tensor,
    beta: float,
    *,
    scale: float | Tensor = 1.0,
    normaliser: float | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Mean over entries of scale (r |x0+ - x0|^2 + (1 - r) |x0- - x0|^2), squares averaged over dimensions, with

        v+- = v_old +- beta (v - v_old),   x0+- = x_sigma - sigma v+-,   r = 1/2 + clip(A, -1, 1) / 2

    The minimum is v = v_old + (A / beta) (v_true - v_old): a smaller beta lets the policy go further. At v = v_old the
    gradient by v is 2 sigma^2 beta A (v_old - v_true) / D for D dimensions. The paper divides each |x0+- - x0|^2
    further by a running size of itself; here `scale` takes care of the steps' sizes.

    velocity      v [batch, ...]; the only tensor that gets a gradient
    latents       x_sigma = (1 - sigma) x0 + sigma eps, with `clean` x0; all of v's shape
    advantage     A [batch], one entry per image; NaN masks its entry
    beta          > 0
    sigma, scale  of the step (`nft_scales`): a number, or [batch] if the images are at different steps
    normaliser    divide the sum by this instead of the number of unmasked entries, so that micro-batches add up

    Returns the scalar loss and figures of the scored entries: "velocity_change", the mean of (v - v_old)^2 (NaN
    without an entry), and "count". Without an entry the loss is a zero that has a graph.
    Raises ValueError if shapes differ, or unless sigma, beta and normaliser are positive.
    """
    shapes = [tuple(values.shape) for values in (velocity, old_velocity, latents, clean)]
    if len(set(shapes)) != 1 or advantage.shape != velocity.shape[:1]:
        raise ValueError(
            f"velocity, old_velocity, latents, clean have shapes {shapes}, advantage {tuple(advantage.shape)}; the "
            "first four must be equal, with one advantage per image"
        )
    for name, value in (("sigma", sigma), ("beta", beta), ("normaliser", 1 if normaliser is None else normaliser)):
        if not (torch.as_tensor(value) > 0).all():
            raise ValueError(f"{name} is {value}; use a positive number")
    scored = ~advantage.isnan()
    count = scored.sum()
    sigma = per_image(torch.as_tensor(sigma), latents)
    change = velocity - old_velocity.detach()
    positive, negative = (
        mean_per_image((latents - sigma * (old_velocity.detach() + sign * beta * change) - clean).square())
        for sign in (1, -1)
    )
    # Masked twice: 0 * NaN is NaN, for r in the gradient and for the squares in the loss.
    r = torch.where(scored, 0.5 + advantage.clamp(-1, 1) / 2, 0.5)
    losses = torch.where(scored, r * positive + (1 - r) * negative, 0.0)
    loss = (scale * losses).sum() / (count.clamp(min=1) if normaliser is None else normaliser)
    moved = mean_per_image(change.detach().square())[scored].mean()
    return loss, {"velocity_change": moved, "count": count}


def nft_pull(sigmas: Tensor) -> Tensor:
    """How strongly a step at each sigma pulls on the velocity without a scale: sigma^2, up to a common factor."""
    return sigmas.double().square()


def nft_scales(mode: StepScaleMode, sigmas: Tensor, steps: Sequence[int], *, over: Sequence[int]) -> Tensor:
    """Factor [len(steps)] on each trained step's loss, float64.

    "none"   1 for every step
    "equal"  1 / sigma^2, divided by its mean over the true indices `over`: an equal distance of velocities then pulls
             equally at every step
    Raises ValueError for an index that cannot be trained.
    """
    trained, reference = (trainable_indices(at, len(sigmas) - 1) for at in (steps, over))
    if mode == "none":
        return torch.ones(len(trained), dtype=torch.float64)
    return (1 / nft_pull(sigmas[trained])) / (1 / nft_pull(sigmas[reference])).mean()
