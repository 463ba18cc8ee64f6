"""One denoising step: reference values, diffusers, torch.distributions and a Gaussian with known velocity."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.distributions import Normal

from customized_grpo.algorithm import (
    Dynamics,
    log_prob,
    sigma_schedule,
    step_distribution,
    step_gradient_factor,
    step_scales,
)

X, V, EPS = ([[0.5, -1.0, 2.0, 0.25]], [[1.0, 0.5, -0.5, 2.0]], [[0.3, -0.7, 1.1, -0.2]])
NOISE: dict[Dynamics, float] = {"dance": 0.4, "flow": 0.7, "cps": 0.8}
SIGMAS = sigma_schedule(25, 3.0)
near = partial(torch.testing.assert_close, atol=1e-5, rtol=0)


@pytest.mark.parametrize("index", range(9))
def test_steps_match_the_reference(reference, index):
    case: dict[str, Any] = reference["steps"][index]
    x, v, eps = (torch.tensor(values, dtype=torch.float32) for values in (X, V, EPS))
    dynamics: Dynamics = "flow" if case["kind"] == "flow_sde" else case["kind"]
    sigmas = sigma_schedule(case["T"], case["shift"])
    noise_level = case["eta"] if dynamics == "dance" else case["noise_level"]
    mean, std = step_distribution(dynamics, x, v, sigmas[case["i"]], sigmas[case["i"] + 1], noise_level, sigmas[1])
    sample = mean + std * eps
    near(mean, torch.tensor([case["mean"]]))
    near(std, torch.tensor(case["std"]))
    near(sample, torch.tensor([case["next"]]))
    near(log_prob(sample, mean, std), torch.tensor([case["logp_full_mean"]]))
    if dynamics == "cps":  # other implementations leave out the factor and the normaliser
        squared_error = torch.tensor(-case["logp_as_peers_write_it_neg_mse"])
        full = -squared_error / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
        near(log_prob(sample, mean, std)[0], full)


@pytest.mark.parametrize("shift", [1.43, 1.57, 3.0])
def test_first_flow_std_is_the_noise_level(shift):
    sigmas = sigma_schedule(25, shift)
    x = torch.ones(1, 4, dtype=torch.float64)
    mean, std = step_distribution("flow", x, x, sigmas[0], sigmas[1], 0.7, sigmas[1])
    assert abs(std.item() - 0.7) < 1e-12  # g^2 (-dt) = .7^2 (1 / (1 - sigma_1)) (1 - sigma_1)
    assert mean.isfinite().all()


@pytest.mark.parametrize(("dynamics", "noise_level"), [("ode", 0.7), ("dance", 0.0), ("flow", 0.0), ("cps", 0.0)])
def test_without_noise_a_step_is_diffusers_euler_step(dynamics, noise_level):
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(25)
    generator = torch.Generator().manual_seed(0)
    ours = theirs = torch.randn(2, 64, 16, generator=generator)
    sigmas = scheduler.sigmas
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = torch.randn(ours.shape, generator=generator)
        ours, std = step_distribution(dynamics, ours, velocity, sigmas[i], sigmas[i + 1], noise_level, sigmas[1])
        theirs = scheduler.step(velocity, timestep, theirs).prev_sample
        assert std == 0
        if dynamics == "cps":  # the same step, but its coefficients are sums that round
            near(ours, theirs)
        else:
            assert torch.equal(ours, theirs), f"step {i}: {(ours - theirs).abs().max()}"


@pytest.mark.parametrize("dynamics", NOISE)
def test_one_sigma_per_image_equals_image_by_image(dynamics):
    x, v = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([20, 0, 7])
    mean, std = step_distribution(dynamics, x, v, SIGMAS[steps], SIGMAS[steps + 1], NOISE[dynamics], SIGMAS[1])
    assert std.shape == (3, 1, 1)
    for b, i in enumerate(steps.tolist()):
        alone, alone_std = step_distribution(
            dynamics, x[b : b + 1], v[b : b + 1], SIGMAS[i], SIGMAS[i + 1], NOISE[dynamics], SIGMAS[1]
        )
        assert alone_std.shape == ()
        assert torch.equal(mean[b], alone[0])
        assert torch.equal(std[b].squeeze(), alone_std)


@pytest.mark.parametrize("dynamics", NOISE)
def test_replay_in_another_batch_has_the_same_log_prob(dynamics):
    x, v, noise = torch.randn(3, 4, 64, 16, generator=torch.Generator().manual_seed(0))
    step = (NOISE[dynamics], SIGMAS[1])
    mean, std = step_distribution(dynamics, x, v, SIGMAS[5], SIGMAS[6], *step)
    sample = mean + std * noise
    rollout = log_prob(sample, mean, std)
    # Replayed with images 2 and 3 only, the sigmas per image: the ratio must be exactly 1.
    mean, std = step_distribution(dynamics, x[2:], v[2:], SIGMAS[[5, 5]], SIGMAS[[6, 6]], *step)
    assert torch.equal(log_prob(sample[2:], mean, std), rollout[2:])


def test_half_precision_is_computed_in_float32_and_float64_is_kept():
    x, v = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    step = (SIGMAS[3], SIGMAS[4], 0.7, SIGMAS[1])
    mean, std = step_distribution("flow", x, v, *step)
    expected, _ = step_distribution("flow", x.float(), v.float(), *step)
    assert torch.equal(mean, expected)
    assert std.dtype == log_prob(x, mean, std).dtype == torch.float32
    exact, std = step_distribution("flow", x.double(), v.double(), *step)
    assert exact.dtype == std.dtype == torch.float64
    assert 0 < (exact - expected).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 3, 4, 2)])
def test_log_prob_is_the_mean_log_density_of_a_normal(shape):
    generator = torch.Generator().manual_seed(0)
    sample, mean = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    per_image = 0.1 + torch.rand(5, generator=generator, dtype=torch.float64)
    broadcast = per_image.view(5, *[1] * (len(shape) - 1))
    expected = Normal(mean, broadcast).log_prob(sample).reshape(5, -1).mean(1)
    torch.testing.assert_close(log_prob(sample, mean, broadcast), expected)
    torch.testing.assert_close(log_prob(sample, mean, per_image), expected)
    torch.testing.assert_close(log_prob(sample, mean, 0.3), Normal(mean, 0.3).log_prob(sample).reshape(5, -1).mean(1))


def gaussian_spread(dynamics: Dynamics, num_steps: int, flip: bool = False) -> float:
    """Standard deviation of what a sampler generates for data N(0, .4^2), computed from the exact velocity.

    x_sigma is N(0, V) with V = (1 - sigma)^2 s^2 + sigma^2, so v = E[eps - x_0 | x] = k x with
    k = (sigma - (1 - sigma) s^2) / V: the mean of a step is a multiple m x, and var' = m^2 var + std^2.
    """
    sigmas = sigma_schedule(num_steps, 3.0)
    variance = 1.0
    one = torch.ones(1, dtype=torch.float64)
    for i in range(num_steps):
        sigma = sigmas[i].item()
        k = (sigma - (1 - sigma) * 0.16) / ((1 - sigma) ** 2 * 0.16 + sigma**2)
        last = i == num_steps - 1
        step = (one, k * one, sigmas[i], sigmas[i + 1], NOISE.get(dynamics, 0.0), sigmas[1])
        mean, std = step_distribution("ode" if last else dynamics, *step)
        if flip:  # the Euler step minus the score term, instead of plus
            mean = 2 * step_distribution("ode", *step)[0] - mean
        variance = mean.item() ** 2 * variance + std.item() ** 2
    return math.sqrt(variance)


@pytest.mark.parametrize("dynamics", ["dance", "flow", "ode"])
def test_sampling_keeps_the_spread_of_a_gaussian(dynamics):
    assert abs(gaussian_spread(dynamics, 100) / 0.4 - 1) < 0.04
    # Euler-Maruyama converges with first order here: four times the steps, about a quarter of the error.
    # ("flow" gains a little more: the error of using sigma_1 instead of 1 in its denominator shrinks as well.)
    ratio = (gaussian_spread(dynamics, 100) - 0.4) / (gaussian_spread(dynamics, 400) - 0.4)
    assert 3.7 < ratio < 5.2


@pytest.mark.parametrize("dynamics", ["dance", "flow"])
def test_sampling_with_a_flipped_score_sign_does_not(dynamics):
    assert gaussian_spread(dynamics, 100, flip=True) / 0.4 > 1.2


@pytest.mark.parametrize("i", [0, 1, 12, 23])
@pytest.mark.parametrize("dynamics", NOISE)
def test_gradient_factor_equals_autograd(dynamics, i):
    x = torch.tensor(X, dtype=torch.float64)
    v = torch.tensor(V, dtype=torch.float64, requires_grad=True)
    step = (SIGMAS[i], SIGMAS[i + 1], NOISE[dynamics], SIGMAS[1])
    mean, std = step_distribution(dynamics, x, v, *step)
    (gradient,) = torch.autograd.grad(mean.sum(), v)
    factor = step_gradient_factor(dynamics, *step)
    torch.testing.assert_close(factor.expand(1, 4), gradient.abs() / std)


def test_gradient_factor_grows_55_fold_for_flow_and_3_5_fold_for_dance():
    growth: dict[str, float] = {}
    for dynamics in ("flow", "dance"):
        factor = step_gradient_factor(dynamics, SIGMAS[:24], SIGMAS[1:25], NOISE[dynamics], SIGMAS[1])
        growth[dynamics] = (factor[23] / factor[0]).item()
    assert growth["flow"] == pytest.approx(55, abs=0.5)
    assert growth["dance"] == pytest.approx(3.5, abs=0.05)


@pytest.mark.parametrize("dynamics", NOISE)
def test_equal_scales_make_every_step_pull_equally(dynamics):
    steps = torch.tensor([9, 2, 23, 14])  # true indices, not in order
    scales = step_scales("equal", dynamics, SIGMAS, steps, NOISE[dynamics])
    pull = scales * step_gradient_factor(dynamics, SIGMAS[steps], SIGMAS[steps + 1], NOISE[dynamics], SIGMAS[1])
    torch.testing.assert_close(pull, pull[0].expand(4))
    assert scales.mean().item() == pytest.approx(1)
    assert step_scales("none", dynamics, SIGMAS, steps, NOISE[dynamics]).tolist() == [1.0] * 4


def test_scales_of_windows_are_comparable_if_normalised_over_all_reachable_steps():
    every = step_scales("equal", "flow", SIGMAS, range(9), 0.7)
    window = step_scales("equal", "flow", SIGMAS, (4, 5), 0.7, over=range(9))
    torch.testing.assert_close(window, every[4:6])
    assert step_scales("equal", "flow", SIGMAS, (4, 5), 0.7).mean().item() == pytest.approx(1)


def step_with(**changes: Any) -> tuple[Tensor, Tensor]:
    x = torch.zeros(2, 4)
    step: dict[str, Any] = {
        "dynamics": "flow", "latents": x, "velocity": x,
        "sigma": 0.5, "sigma_next": 0.4, "noise_level": 0.7, "sigma_max": 0.9,
    }  # fmt: skip
    return step_distribution(**(step | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamics": "sde"}, "dynamics is 'sde'; use one of dance, flow, cps, ode"),
        ({"velocity": torch.zeros(2, 1)}, r"velocity \(2, 1\)"),
        ({"sigma": 0.4}, "sigma must fall"),
        ({"sigma": 1.1}, "between 1 and 0"),
        ({"sigma_next": -0.1}, "between 1 and 0"),
        ({"sigma": float("nan")}, "sigma must fall"),
        ({"sigma": torch.full((3,), 0.5)}, "one sigma per image"),
        ({"noise_level": -0.1}, "noise_level is -0.1"),
        ({"dynamics": "cps", "noise_level": 1.2}, "at most 1 with 'cps'"),
        ({"sigma_max": 1.0}, r"pass schedule\[1\]"),
    ],
)
def test_an_invalid_step_is_refused(changes, message):
    step_with()  # valid without the change
    with pytest.raises(ValueError, match=message):
        step_with(**changes)


def test_a_step_without_noise_has_no_density():
    x = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="std is 0; an ODE step has no density"):
        log_prob(x, x, torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"ode at noise_level 0\.7 has a step of std 0"):
        step_gradient_factor("ode", 0.5, 0.4, 0.7, 0.9)
    with pytest.raises(ValueError, match=r"flow at noise_level 0\.0 has a step of std 0"):
        step_gradient_factor("flow", 0.5, 0.4, 0.0, 0.9)
    with pytest.raises(ValueError, match="a step of std 0"):
        step_scales("equal", "ode", SIGMAS, [3], 0.7)


def test_log_prob_refuses_to_broadcast_a_batch():
    with pytest.raises(ValueError, match=r"sample \(2, 4\), mean \(1, 4\)"):
        log_prob(torch.zeros(2, 4), torch.zeros(1, 4), 0.5)


def test_scales_refuse_untrained_steps_and_unknown_modes():
    with pytest.raises(ValueError, match="use true indices, 0 to 23"):
        step_scales("none", "flow", SIGMAS, [24], 0.7)
    with pytest.raises(ValueError, match="use 'none' or 'equal'"):
        step_scales("max", "flow", SIGMAS, [3], 0.7)  # pyright: ignore[reportArgumentType]
