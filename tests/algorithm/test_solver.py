"""Steps of second order: diffusers' own solver, the order of the error, and the cases that are Euler's."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from customized_grpo.algorithm import coarse_steps, multistep, sigma_schedule, step_distribution


def ideal_velocity(latents: Tensor, sigma: float) -> Tensor:
    """Of images that are normal with mean 2 and variance .25, in closed form."""
    variance = (1 - sigma) ** 2 * 0.25 + sigma**2
    clean = 2 + (1 - sigma) * 0.25 / variance * (latents - (1 - sigma) * 2)
    noise = (latents - (1 - sigma) * clean) / sigma
    return noise - clean


def solve(latents: Tensor, sigmas: list[float], *, second_order: bool) -> Tensor:
    before = None
    for sigma, sigma_next in pairwise(sigmas):
        velocity = ideal_velocity(latents, sigma)
        latents, clean = multistep(latents, velocity, sigma, sigma_next, before)
        before = (sigma, clean) if second_order else None
    return latents


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_is_diffusers_solver(noise: Tensor):
    """DPM-Solver++ (2M) of diffusers 0.42 with flow prediction, on the same grid."""
    sigmas = sigma_schedule(6, 3.0)
    scheduler: Any = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, lower_order_final=True, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(6)
    scheduler.sigmas = sigmas.double()
    theirs = ours = noise
    before = None
    for timestep, sigma, sigma_next in zip(scheduler.timesteps, sigmas.tolist(), sigmas[1:].tolist(), strict=False):
        velocity = ideal_velocity(ours, sigma)
        theirs = scheduler.step(velocity, timestep, theirs).prev_sample
        ours, clean = multistep(ours, velocity, sigma, sigma_next, before)
        before = sigma, clean
        torch.testing.assert_close(ours, theirs.to(ours), atol=1e-5, rtol=1e-5)


def test_without_a_step_before_it_is_eulers(noise: Tensor):
    sigmas = sigma_schedule(5, 3.0)
    for sigma, sigma_next in zip(sigmas.tolist(), sigmas[1:].tolist(), strict=False):
        velocity = ideal_velocity(noise, sigma)
        expected, _ = step_distribution("ode", noise, velocity, sigma, sigma_next, 0.0, sigmas[1])
        torch.testing.assert_close(multistep(noise, velocity, sigma, sigma_next)[0], expected)


@pytest.mark.parametrize("ends", [(1.0, 0.6), (0.6, 0.0)], ids=["after pure noise", "to the image"])
def test_where_the_log_ratio_is_infinite_it_is_eulers(ends: tuple[float, float], noise: Tensor):
    before = (1.0 if ends[0] < 1 else 1.1, torch.ones_like(noise))
    velocity = ideal_velocity(noise, ends[0])
    got, _ = multistep(noise, velocity, *ends, before)
    assert got.isfinite().all()
    if ends[1] == 0 or before[0] >= 1:
        torch.testing.assert_close(got, noise + (ends[1] - ends[0]) * velocity)


def test_halving_the_steps_quarters_the_error_that_euler_halves(noise: Tensor):
    exact = solve(0.3 * noise, [0.9 * (1 - step / 3000) + 0.05 for step in range(3001)], second_order=True)
    errors = {}
    for second_order in (False, True):
        grids = ([0.9 * (1 - step / count) + 0.05 for step in range(count + 1)] for count in (20, 40))
        ends = [solve(0.3 * noise, grid, second_order=second_order) for grid in grids]
        errors[second_order] = [(end - exact).norm().item() for end in ends]
    euler, second = (coarse / fine for coarse, fine in errors.values())
    assert euler == pytest.approx(2, rel=0.1)
    assert second == pytest.approx(4, rel=0.2)
    assert errors[True][0] < errors[False][1]


def test_half_precision_is_computed_in_float32(noise: Tensor):
    latents, velocity = noise.bfloat16(), noise.bfloat16()
    assert multistep(latents, velocity, 0.5, 0.4)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("first", "last", "count", "expected"),
    [
        (0, 10, 5, (0, 2, 4, 6, 8, 10)),
        (3, 10, 3, (3, 5, 8, 10)),
        (3, 5, 9, (3, 4, 5)),  # no finer than the grid
        (4, 4, 2, (4,)),
        (0, 25, 1, (0, 25)),
    ],
)
def test_coarse_steps(first: int, last: int, count: int, expected: tuple[int, ...]):
    assert coarse_steps(first, last, count) == expected


def test_coarse_steps_are_all_different():
    for last in range(1, 40):
        for count in range(1, last + 1):
            steps = coarse_steps(0, last, count)
            assert len(set(steps)) == count + 1
            assert (steps[0], steps[-1]) == (0, last)
            assert max(b - a for a, b in pairwise(steps)) <= math.ceil(last / count)


@pytest.mark.parametrize(("first", "last", "count"), [(0, 4, 0), (5, 4, 2)])
def test_impossible_steps_are_refused(first: int, last: int, count: int):
    with pytest.raises(ValueError, match="needs at least 1"):
        coarse_steps(first, last, count)
