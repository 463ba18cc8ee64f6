"""Deterministic steps of second order: fewer of them reach the same picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def coarse_steps(first: int, last: int, count: int) -> tuple[int, ...]:
    """Indices of a noise grid from `first` to `last`, both included, that divide the way into `count` steps.

    They are as even as whole numbers can be, and at most last - first steps. Raises ValueError for a count below 1,
    or if last < first.
    """
    if count < 1 or last < first:
        raise ValueError(f"{count} steps from {first} to {last}; needs at least 1, forwards")
    steps = min(count, last - first)
    return tuple(first + round(part * (last - first) / steps) for part in range(steps + 1)) if steps else (first,)


def multistep(
    latents: Tensor,
    velocity: Tensor,
    sigma: float,
    sigma_next: float,
    before: tuple[float, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The latents [B, ...] at sigma_next, and the estimate x0^ [B, ...] of the image at sigma.

    before  sigma and x0^ of the step before; None after a step with noise, or at the start: then this one is Euler's

    DPM-Solver++(2M), arXiv 2211.01095, algorithm 2, for alpha = 1 - sigma: with lambda = log(alpha / sigma) and
    h = lambda' - lambda,
        D = x0^ + h / (2 h_before) (x0^ - x0^_before)
        x' = sigma' / sigma x + (1 - sigma' / sigma) D
    The first step from pure noise and the last one to the image have an infinite h; there D = x0^, which is Euler's
    step. Computed in float32 or better.
    """
    latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
    clean = latents - sigma * velocity.to(latents)
    mixed = clean
    if before is not None and sigma_next > 0 and before[0] < 1:
        step = _log_ratio(sigma_next) - _log_ratio(sigma)
        step_before = _log_ratio(sigma) - _log_ratio(before[0])
        mixed = clean + step / (2 * step_before) * (clean - before[1])
    ratio = sigma_next / sigma
    return ratio * latents + (1 - ratio) * mixed, clean


def _log_ratio(sigma: float) -> float:
    """lambda, half of the log signal-to-noise ratio."""
    return math.log((1 - sigma) / sigma)
