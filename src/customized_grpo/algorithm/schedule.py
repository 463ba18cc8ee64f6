"""The noise grid, how far along it a step is, and which steps are stochastic."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

WindowStrategy = Literal["all", "random", "scattered", "sliding", "fixed"]
ProgressReading = Literal["step", "sigma"]


def sigma_schedule(num_steps: int, shift: float) -> Tensor:
    """Noise levels of a denoising run: s_i = 1 - i/T, sigma_i = shift s_i / (1 + (shift - 1) s_i).

    Source: Esser et al. 2024 (SD3), the timestep shift; arXiv 2510.18263 uses T = 25, shift 3.
    Returns float64 [num_steps + 1], decreasing from exactly 1 to exactly 0. To match a diffusers pipeline bit
    for bit, use the float32 grid of its scheduler instead.
    Raises ValueError for num_steps < 1, or a shift that is not positive and finite.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; a denoising run needs at least 1 step")
    if not 0 < shift < math.inf:
        raise ValueError(f"shift is {shift}; use a positive number, such as 3 (1 gives equal steps)")
    s = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    sigmas = shift * s / (1 + (shift - 1) * s)
    # For some shifts rounding makes the formula miss 1 (1.43 in float32), and 1 - sigma is a divisor.
    sigmas[0], sigmas[-1] = 1.0, 0.0
    return sigmas


def progress(step: int | float | Tensor, num_steps: int) -> Tensor:
    """Progress u = t / T of step t (any shape), float64, clamped to [0, 1]; 0 is pure noise.

    Raises ValueError for num_steps < 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; progress needs at least 1 step")
    return (torch.as_tensor(step, dtype=torch.float64) / num_steps).clamp(0, 1)


def progress_from_sigma(sigma: float | Tensor) -> Tensor:
    """Progress u = 1 - sigma / (3 - 2 sigma) of a noise level (any shape), float64, clamped to [0, 1].

    The inverse of the shift formula at shift 3, the authors' setting. At shift 3 it equals t / T; at any other
    shift a weight still applies at the noise level where the authors apply it.
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float64)
    return (1 - sigma / (3 - 2 * sigma)).clamp(0, 1)


def step_progress(steps: Sequence[int] | Tensor, sigmas: Tensor, reading: ProgressReading = "step") -> Tensor:
    """Progress [len(steps)] of trained steps, given by true index in any order, on the grid sigmas [T + 1].

    reading   "step": from the index, u = t / T; "sigma": from the noise level
    Raises ValueError for an index that cannot be trained, or an unknown reading.
    """
    indices = trainable_indices(steps, len(sigmas) - 1)
    if reading == "step":
        return progress(indices, len(sigmas) - 1)
    if reading == "sigma":
        return progress_from_sigma(sigmas[indices])
    raise ValueError(f"progress reading is {reading!r}; use 'step' or 'sigma'")


def trainable_indices(steps: Sequence[int] | Tensor, num_steps: int) -> Tensor:
    """The true step indices as a tensor. Raises ValueError unless all are in 0..T-2: the step to sigma 0 is ODE."""
    indices = torch.as_tensor(steps)
    if indices.numel() == 0 or not ((indices >= 0) & (indices <= num_steps - 2)).all():
        raise ValueError(f"steps {indices.tolist()} cannot be trained; use true indices, 0 to {num_steps - 2}")
    return indices


def stochastic_steps(
    strategy: WindowStrategy,
    num_steps: int,
    size: int | None = None,
    *,
    first: int = 0,
    last: int | None = None,
    start: int | None = None,
    iteration: int = 0,
    every: int = 1,
    stride: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[int, ...]:
    """True indices, ascending, of the steps that are trained, and therefore stochastic.

    "all"        every step of first..last; size is ignored
    "random"     a window of `size` consecutive steps within first..last, its position drawn from `generator`
    "scattered"  `size` different steps of first..last, drawn from `generator`: `scattered_steps`
    "sliding"    a window, moved by `stride` after every `every` updates (`iteration` counts them from 0),
                 wrapping around; MixGRPO, arXiv 2507.21802
    "fixed"      the window that begins at `start` (default: first)

    first..last defaults to 0..num_steps - 2: the last step lands on sigma = 0 and is always an ODE step.
    Raises ValueError for a range or window outside these steps, a random window without a generator, or an
    unknown strategy.
    """
    last = _last_of_range(num_steps, first, last)
    if strategy == "all":
        return tuple(range(first, last + 1))
    size = _checked_size(size, first, last)
    if strategy == "scattered":
        return tuple(sorted(scattered_steps(num_steps, size, first=first, last=last, generator=generator)))
    positions = last - first + 2 - size
    match strategy:
        case "random":
            generator = _required(generator)
            position = int(torch.randint(positions, (), generator=generator, device=generator.device))
        case "sliding":
            if iteration < 0 or every < 1 or stride < 1:
                raise ValueError(
                    f"sliding window with iteration {iteration}, every {every}, stride {stride}; "
                    "use iteration >= 0, every >= 1, stride >= 1"
                )
            position = iteration // every * stride % positions
        case "fixed":
            position = 0 if start is None else start - first
            if not 0 <= position < positions:
                raise ValueError(
                    f"window start is {start}; {size} steps within {first}..{last} "
                    f"start at {first} to {first + positions - 1}"
                )
        case _:
            raise ValueError(f"window strategy is {strategy!r}; use one of {', '.join(get_args(WindowStrategy))}")
    return tuple(range(first + position, first + position + size))


def scattered_steps(
    num_steps: int, size: int, *, first: int = 0, last: int | None = None, generator: torch.Generator | None
) -> tuple[int, ...]:
    """`size` different true indices of first..last (default: 0..num_steps - 2), in the order in which they are drawn.

    Each choice and each order is equally likely. The release of arXiv 2510.18263 trains 14 of the steps 0..23 so.
    Raises ValueError for a range or size outside the trainable steps, or without a generator.
    """
    generator = _required(generator)
    last = _last_of_range(num_steps, first, last)
    size = _checked_size(size, first, last)
    order = torch.randperm(last - first + 1, generator=generator, device=generator.device)[:size]
    return tuple(first + step for step in order.tolist())


def _required(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise ValueError("random steps without a generator; pass one, so that runs can be repeated")
    return generator


def _last_of_range(num_steps: int, first: int, last: int | None) -> int:
    last = num_steps - 2 if last is None else last
    if not 0 <= first <= last <= num_steps - 2:
        raise ValueError(
            f"stochastic steps {first}..{last} are not within 0..{num_steps - 2}; the last step is always ODE"
        )
    return last


def _checked_size(size: int | None, first: int, last: int) -> int:
    if size is None or not 1 <= size <= last - first + 1:
        raise ValueError(f"window size is {size}; steps {first}..{last} hold 1 to {last - first + 1}")
    return size
