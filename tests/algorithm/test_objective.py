"""The clipped objective and the KL divergence: values, masks, gradients, several updates per rollout."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from customized_grpo.algorithm import (
    clipped_objective,
    kl_to_base,
    log_prob,
    sigma_schedule,
    step_distribution,
)

NAN = math.nan
near = partial(torch.testing.assert_close, atol=1e-6, rtol=0)

RATIO = torch.tensor([1.2, 1.2, 0.8, 0.8])
ADVANTAGE = torch.tensor([1.0, -1.0, 1.0, -1.0])
# c = .1:  max(-1.2, -1.1) = -1.1;  max(1.2, 1.1) = 1.2;  max(-.8, -.9) = -.8;  max(.8, .9) = .9
LOSSES = torch.tensor([-1.1, 1.2, -0.8, 0.9])


def test_values_worked_by_hand():
    loss, diagnostics = clipped_objective(RATIO.log(), torch.zeros(4), ADVANTAGE, 0.1)
    near(loss, torch.tensor(0.05))  # (-1.1 + 1.2 - .8 + .9) / 4
    found = {name: float(value) for name, value in diagnostics.items()}
    assert found == pytest.approx(
        {
            "ratio_mean": 1.0,
            "ratio_max_deviation": 0.2,
            "clip_fraction": 0.5,  # the first and the last
            "approx_kl": 0.020411,  # (.2 - ln 1.2 = .017678, -.2 - ln .8 = .023144), averaged
            "count": 4,
        },
        abs=1e-6,
    )
    assert not any(value.requires_grad for value in diagnostics.values())


def test_the_scale_acts_on_the_log_ratio_before_the_clip():
    """Ratios 1.2^2 = 1.44, 1.2^.5 = 1.09545 (inside the clip), .8^2 = .64, .8^0 = 1; c = .1:
    max(-1.44, -1.1) = -1.1;  1.09545;  max(-.64, -.9) = -.64;  1"""
    new = RATIO.log().requires_grad_()
    scale = torch.tensor([2.0, 0.5, 2.0, 0.0])
    loss, diagnostics = clipped_objective(new, torch.zeros(4), ADVANTAGE, 0.1, scale=scale)
    near(loss, torch.tensor((-1.1 + 1.09545 - 0.64 + 1) / 4), atol=1e-5)
    assert diagnostics["clip_fraction"] == 0.25  # unscaled, the last one would be clipped, too
    near(diagnostics["ratio_max_deviation"], torch.tensor(0.44))
    loss.backward()
    near(new.grad, torch.tensor([0, 0.5 * 1.09545, -2 * 0.64, 0]) / 4, atol=1e-5)  # -A scale rho / 4


def test_the_normaliser_replaces_the_count():
    near(clipped_objective(RATIO.log(), torch.zeros(4), ADVANTAGE, 0.1, normaliser=10)[0], LOSSES.sum() / 10)


def test_micro_batches_with_a_common_normaliser_add_up():
    advantage = torch.tensor([1.0, NAN, -2.0, 3.0])
    whole, _ = clipped_objective(RATIO.log(), torch.zeros(4), advantage, 0.1)
    parts = [
        clipped_objective(RATIO[i : i + 1].log(), torch.zeros(1), advantage[i : i + 1], 0.1, normaliser=3)[0]
        for i in range(4)
    ]
    near(sum(parts), whole)  # three entries are scored


def test_before_the_first_update_the_gradient_is_the_policy_gradient():
    old = torch.tensor([-0.3, 0.2, 1.9])
    new = old.clone().requires_grad_()
    advantage = torch.tensor([1.0, -0.5, 0.25])
    loss, diagnostics = clipped_objective(new, old, advantage, 1e-4, scale=2.0)
    loss.backward()
    near(new.grad, -2 * advantage / 3)
    assert (diagnostics["ratio_max_deviation"], diagnostics["clip_fraction"]) == (0, 0)


def test_small_deviations_are_measured_more_finely_than_exp_rounds():
    _, diagnostics = clipped_objective(torch.tensor([1e-4]), torch.zeros(1), torch.ones(1), 1e-3)
    # exp(1e-4) - 1 - 1e-4 = 5.0002e-9, a twentieth of the float32 resolution at 1
    assert diagnostics["approx_kl"].item() == pytest.approx(5e-9, rel=0.01)


def test_masked_entries_do_not_enter_loss_diagnostics_or_gradient():
    new = RATIO.log().requires_grad_()
    advantage = torch.tensor([1.0, NAN, NAN, -1.0])
    loss, diagnostics = clipped_objective(new, torch.zeros(4), advantage, 0.3)
    loss.backward()
    near(loss, torch.tensor((-1.2 + 0.8) / 2))
    near(new.grad, torch.tensor([-0.6, 0, 0, 0.4]))  # -A rho / 2
    assert diagnostics["count"] == 2
    assert diagnostics["ratio_max_deviation"].item() == pytest.approx(0.2)


def test_a_fully_masked_batch_gives_a_zero_with_a_graph():
    new = torch.tensor([0.1, -0.2], requires_grad=True)
    loss, diagnostics = clipped_objective(new, torch.zeros(2), torch.full((2,), NAN), 0.1, scale=2.0)
    loss.backward()
    assert loss == 0
    assert new.grad is not None
    assert new.grad.tolist() == [0, 0]
    assert diagnostics.pop("count") == 0
    assert all(value.isnan() for value in diagnostics.values())


def test_clipping_takes_effect_with_four_updates_per_rollout():
    generator = torch.Generator().manual_seed(0)
    images, dimensions = 32, 24
    latents, noise = torch.randn(2, images, dimensions, generator=generator)
    advantage = torch.randn(images, generator=generator)
    policy = torch.nn.Linear(dimensions, dimensions, bias=False)
    torch.nn.init.normal_(policy.weight, std=0.1, generator=generator)
    sigmas = sigma_schedule(10, 3.0)

    def distribution() -> tuple[Tensor, Tensor]:
        return step_distribution("flow", latents, policy(latents), sigmas[4], sigmas[5], 0.7, sigmas[1])

    with torch.no_grad():
        mean, std = distribution()
        sample = mean + std * noise
        old = log_prob(sample, mean, std)
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.3)
    fractions: list[float] = []
    for _ in range(4):
        new = log_prob(sample, *distribution())
        new.retain_grad()
        loss, diagnostics = clipped_objective(new, old, advantage, 1e-3)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        fractions.append(float(diagnostics["clip_fraction"]))
        ratio = (new - old).exp()
        # An entry is clipped once it has moved far enough in the direction of its advantage.
        clipped = ((advantage > 0) & (ratio > 1 + 1e-3)) | ((advantage < 0) & (ratio < 1 - 1e-3))
        assert new.grad is not None
        assert torch.equal(new.grad == 0, clipped)
        assert fractions[-1] == pytest.approx(clipped.float().mean().item())
    assert fractions[0] == 0  # one update per rollout never clips
    assert 0 < fractions[1] < fractions[2] < fractions[3] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantage": torch.zeros(4, 1)}, r"shapes \[\(4,\), \(4,\), \(4, 1\)\]"),
        ({"old_log_prob": torch.zeros(1)}, "they must be equal"),
        ({"scale": torch.ones(2)}, "they must be equal"),
        ({"clip_range": 0.0}, r"clip_range is 0\.0"),
        ({"normaliser": 0.0}, r"normaliser is 0\.0"),
    ],
)
def test_invalid_inputs_are_refused(change, message):
    inputs = {"log_prob": RATIO, "old_log_prob": RATIO, "advantage": ADVANTAGE, "clip_range": 0.1}
    clipped_objective(**inputs)  # valid without the change
    with pytest.raises(ValueError, match=message):
        clipped_objective(**(inputs | change))


def test_kl_is_that_of_two_normals_and_has_a_gradient():
    generator = torch.Generator().manual_seed(0)
    base, shift = torch.randn(2, 3, 5, 2, generator=generator, dtype=torch.float64)
    mean = (base + 0.1 * shift).requires_grad_()
    std = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64).view(3, 1, 1)
    kl = kl_to_base(mean, base, std)
    torch.testing.assert_close(kl, kl_divergence(Normal(mean, std), Normal(base, std)).mean((1, 2)))
    (gradient,) = torch.autograd.grad(kl.sum(), mean)
    torch.testing.assert_close(gradient, 0.1 * shift / (10 * std**2))  # (mu - mu_base) / (D std^2), D = 10
    # By hand: (.3^2 + .1^2) / 2 / (2 x .5^2) = .05 / .5 = .1
    near(kl_to_base(torch.tensor([[0.3, -0.1]]), torch.zeros(1, 2), 0.5), torch.tensor([0.1]))


def test_kl_needs_noise_and_equal_shapes():
    x = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="an ODE step has no density"):
        kl_to_base(x, x, torch.tensor(0.0))
    with pytest.raises(ValueError, match="differ in shape"):
        kl_to_base(x, x[:1], 0.5)
