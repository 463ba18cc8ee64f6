"""Flow-DPPO's mask and GRPO-Guard's ratio: values worked by hand, and what they do to the gradient."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithm import divergence_objective, guarded_objective, kl_to_base, log_prob

near = partial(torch.testing.assert_close, atol=1e-6, rtol=0)

RATIO = torch.tensor([1.2, 1.2, 0.8, 0.8])
ADVANTAGE = torch.tensor([1.0, -1.0, 1.0, -1.0])
OLD = torch.zeros(4)


# --- Flow-DPPO -------------------------------------------------------------------------------------------------------


def test_a_divergence_above_the_limit_drops_what_would_move_further_away():
    """The good image that has become likelier, and the bad one that has become less likely: (1.2 - .8) / 4 = .1."""
    new = RATIO.log().requires_grad_()
    loss, diagnostics = divergence_objective(new, OLD, ADVANTAGE, torch.full((4,), 2e-5), 1e-5)
    near(loss, torch.tensor(0.1))
    assert diagnostics["clip_fraction"] == 0.5
    near(diagnostics["ratio_max_deviation"], torch.tensor(0.2))
    loss.backward()
    near(new.grad, torch.tensor([0, 1.2, -0.8, 0]) / 4)  # -A rho / 4, or nothing


def test_below_the_limit_nothing_is_dropped_however_far_the_ratio():
    loss, diagnostics = divergence_objective(RATIO.log(), OLD, ADVANTAGE, torch.full((4,), 0.9e-5), 1e-5)
    near(loss, torch.tensor(0.0))  # (-1.2 + 1.2 - .8 + .8) / 4
    assert diagnostics["clip_fraction"] == 0


def test_the_limit_is_that_of_each_entry():
    divergence = torch.tensor([2e-5, 2e-5, 0.5e-5, 0.5e-5])
    loss, _ = divergence_objective(RATIO.log(), OLD, ADVANTAGE, divergence, 1e-5, normaliser=2)
    near(loss, torch.tensor((1.2 - 0.8 + 0.8) / 2))


def test_the_scale_acts_on_the_ratio_and_squared_on_the_divergence():
    """Ratios 1.44 and .64. Divergences 4 x 4e-6 = 1.6e-5 are above the limit of 1e-5: (1.44 - .64) / 4 = .2."""
    loss, _ = divergence_objective(RATIO.log(), OLD, ADVANTAGE, torch.full((4,), 4e-6), 1e-5, scale=2.0)
    near(loss, torch.tensor(0.2))


def test_the_divergence_has_no_gradient():
    divergence = torch.full((4,), 0.5e-5, requires_grad=True)
    new = RATIO.log().requires_grad_()
    divergence_objective(new, OLD, ADVANTAGE, divergence, 1e-5)[0].backward()
    assert divergence.grad is None


# --- GRPO-Guard ------------------------------------------------------------------------------------------------------

# Two dimensions: mu_old = (0, 0), mu = (.1, 0), std .5, sample = mu_old + .5 (1, -1).
MEAN, OLD_MEAN, STD, SAMPLE = torch.tensor([[0.1, 0.0]]), torch.zeros(1, 2), 0.5, torch.tensor([[0.5, -0.5]])


def guarded(mean: Tensor, advantage: float, clip_range: float) -> tuple[Tensor, dict[str, Tensor]]:
    new, old = log_prob(SAMPLE, mean, STD), log_prob(SAMPLE, OLD_MEAN, STD)
    divergence = kl_to_base(mean, OLD_MEAN, STD)
    return guarded_objective(new, old, torch.tensor([advantage]), divergence, STD, clip_range)


def test_the_guarded_ratio_is_that_of_the_means_along_the_noise():
    """log-ratio ((.5^2 - .4^2) / (2 x .25)) / 2 = .09; b = (.1^2 / 2) / (2 x .25) = .01; (.09 + .01) x .5 = .05, which
    is the mean of z (mu - mu_old) = (1 x .1 - 1 x 0) / 2."""
    loss, diagnostics = guarded(MEAN, 1.0, 0.1)
    near(loss, torch.tensor(-math.exp(0.05)))
    near(diagnostics["ratio_mean"], torch.tensor(math.exp(0.05)))
    assert diagnostics["clip_fraction"] == 0


def test_the_guarded_ratio_is_clipped():
    mean = MEAN.clone().requires_grad_()
    loss, diagnostics = guarded(mean, 1.0, 0.04)
    near(loss, torch.tensor(-1.04))
    assert diagnostics["clip_fraction"] == 1
    loss.backward()
    assert mean.grad is not None
    assert mean.grad.abs().max() == 0


def test_the_gradient_of_the_guarded_ratio_follows_the_noise_alone():
    """d/d mu of -exp(mean(z (mu - mu_old))) = -rho z / 2: the bias has its gradient, too."""
    mean = MEAN.clone().requires_grad_()
    guarded(mean, 1.0, 0.1)[0].backward()
    near(mean.grad, -math.exp(0.05) * torch.tensor([[0.5, -0.5]]))


def test_the_guarded_log_ratio_has_mean_zero_at_every_noise_level():
    """A policy that has moved by the same share of the noise: the plain log-ratio is below 0 on average."""
    generator = torch.Generator().manual_seed(0)
    for std in (0.05, 1.0):
        noise = torch.randn(4000, 16, generator=generator, dtype=torch.float64)
        old = torch.zeros_like(noise)
        mean = old + 0.3 * std
        new, sampled = log_prob(std * noise, mean, std), log_prob(std * noise, old, std)
        divergence = kl_to_base(mean, old, std)
        assert (new - sampled).mean().item() == pytest.approx(-0.045, abs=0.005)  # -.3^2 / 2
        _, figures = guarded_objective(new, sampled, torch.ones(4000).double(), divergence, std, 0.1)
        # E exp(x) = exp(var / 2), var = (.3 std)^2 std^2 / 16
        expected = math.exp((0.3 * std**2) ** 2 / 32)
        assert figures["ratio_mean"].item() == pytest.approx(expected, abs=0.005 * std**2)


# --- both ------------------------------------------------------------------------------------------------------------


def objectives(**changes: Any) -> tuple[tuple[Tensor, dict[str, Tensor]], ...]:
    """Both objectives of the entries above, with some arguments replaced."""
    common = {"log_prob": RATIO.log(), "old_log_prob": OLD, "advantage": ADVANTAGE, "divergence": torch.zeros(4)}
    mine: dict[str, Any] = common | {k: v for k, v in changes.items() if k in (*common, "normaliser")}
    return (
        divergence_objective(**mine, max_divergence=changes.get("limit", 0.1)),
        guarded_objective(**mine, std=1.0, clip_range=changes.get("limit", 0.1)),
    )


def test_masked_entries_count_nowhere():
    advantage, new = ADVANTAGE.clone(), RATIO.log().requires_grad_()
    advantage[1:3] = math.nan
    for loss, diagnostics in objectives(advantage=advantage, log_prob=new):
        assert loss.isfinite()
        (gradient,) = torch.autograd.grad(loss, new)
        assert gradient[1:3].tolist() == [0, 0]
        assert diagnostics["count"] == 2


def test_at_ratio_one_every_trust_region_has_the_policy_gradient():
    for loss, _ in objectives(log_prob=(new := OLD.clone().requires_grad_())):
        (gradient,) = torch.autograd.grad(loss, new)
        near(gradient, -ADVANTAGE / 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantage": torch.zeros(4, 1)}, "make them equal|must be equal"),
        ({"divergence": torch.zeros(3)}, "make them equal|must be equal"),
        ({"limit": 0.0}, "max_divergence is 0.0"),
        ({"normaliser": 0.0}, "normaliser is 0.0"),
    ],
)
def test_invalid_inputs_are_refused(change: dict[str, Any], message: str):
    objectives()
    with pytest.raises(ValueError, match=message):
        objectives(**change)
