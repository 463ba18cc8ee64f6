"""DiffusionNFT's objective: values and gradients worked by hand."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithm import nft_objective, nft_pull, nft_scales, sigma_schedule

near = partial(torch.testing.assert_close, atol=1e-6, rtol=0)

# One image of two dimensions at sigma = .5: x0 = (1, 0), eps = (3, -1), so v_true = (2, -1) and x_sigma = (2, -.5).
CLEAN = torch.tensor([[1.0, 0.0]])
LATENTS = torch.tensor([[2.0, -0.5]])
TRUE = torch.tensor([[2.0, -1.0]])
OLD = torch.tensor([[1.0, 0.0]])


def objective(velocity: Tensor, advantage: float, beta: float = 1.0, **further: float) -> Tensor:
    return nft_objective(velocity, OLD, LATENTS, CLEAN, 0.5, torch.tensor([advantage]), beta, **further)[0]


@pytest.mark.parametrize(
    ("advantage", "value"),
    [
        # v = (2, 2), beta = .5: v+ = (1.5, 1), v- = (.5, -1). x0+ = (1.25, -1), x0- = (1.75, 0).
        (1.0, (0.25**2 + 1) / 2),  # |x0+ - x0|^2 / 2 = .53125
        (-1.0, 0.75**2 / 2),  # |x0- - x0|^2 / 2 = .28125
        (0.0, (0.53125 + 0.28125) / 2),
        (0.5, 0.75 * 0.53125 + 0.25 * 0.28125),
        (3.0, 0.53125),  # clipped to 1
        (-7.0, 0.28125),
    ],
)
def test_the_value_by_hand(advantage: float, value: float):
    velocity = torch.tensor([[2.0, 2.0]])
    near(objective(velocity, advantage, 0.5), torch.tensor(value))
    near(objective(velocity, advantage, 0.5, scale=3, normaliser=2), torch.tensor(1.5 * value))


def test_images_of_a_batch_may_be_at_different_steps():
    """Each with a sigma and a scale: the sum is that of the images alone, also of the gradient."""
    velocity = torch.tensor([[2.0, 2.0], [0.0, 1.0]], requires_grad=True)
    sigma, scale, advantage = torch.tensor([0.5, 0.25]), torch.tensor([3.0, 7.0]), torch.tensor([1.0, -0.5])
    old, latents, clean = (values.repeat(2, 1) for values in (OLD, LATENTS, CLEAN))
    together, _ = nft_objective(velocity, old, latents, clean, sigma, advantage, 0.5, scale=scale, normaliser=2)
    alone = torch.tensor(0.0)
    for image in range(2):
        own = velocity[image : image + 1], OLD, LATENTS, CLEAN, sigma[image].item(), advantage[image : image + 1], 0.5
        alone = alone + nft_objective(*own, scale=scale[image].item(), normaliser=2)[0]
    near(together, alone)
    near(*(torch.autograd.grad(loss, velocity)[0] for loss in (together, alone)))


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.4, 0.0])
@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_gradient_at_the_old_velocity_by_hand(advantage: float, beta: float):
    """2 sigma^2 beta A (v_old - v_true) / D = .25 beta A (-1, 1): a good image draws v towards its own velocity."""
    velocity = OLD.clone().requires_grad_()
    objective(velocity, advantage, beta).backward()
    near(velocity.grad, 0.25 * beta * advantage * torch.tensor([[-1.0, 1.0]]))


@pytest.mark.parametrize(("advantage", "beta"), [(1.0, 1.0), (0.5, 1.0), (-1.0, 2.0), (0.5, 0.25)])
def test_the_minimum_lies_beta_times_nearer(advantage: float, beta: float):
    best = (OLD + advantage / beta * (TRUE - OLD)).requires_grad_()
    objective(best, advantage, beta).backward()
    near(best.grad, torch.zeros(1, 2))


def test_an_image_of_a_flat_group_draws_back_to_the_old_velocity():
    """A = 0: sigma^2 beta^2 |v - v_old|^2 / D, with the gradient 2 sigma^2 beta^2 (v - v_old) / D = .25 (1, 2)."""
    velocity = torch.tensor([[2.0, 2.0]], requires_grad=True)
    objective(velocity, 0.0).backward()
    near(velocity.grad, torch.tensor([[0.25, 0.5]]))


def test_masked_entries_count_nothing_and_get_no_gradient():
    velocity = torch.tensor([[2.0, 2.0], [5.0, 5.0], [1.0, 3.0]], requires_grad=True)
    old, latents, clean = (tensor.repeat(3, 1) for tensor in (OLD, LATENTS, CLEAN))
    advantage = torch.tensor([1.0, math.nan, -0.5])
    loss, figures = nft_objective(velocity, old, latents, clean, 0.5, advantage, 1.0)
    loss.backward()
    expected = (objective(velocity[:1], 1.0) + objective(velocity[2:], -0.5)) / 2
    near(loss, expected.detach())
    assert velocity.grad is not None
    assert (velocity.grad[1] == 0).all()
    assert (velocity.grad[[0, 2]].abs().sum(dim=1) > 0).all()
    assert figures["count"] == 2
    near(figures["velocity_change"], torch.tensor((2.5 + 4.5) / 2))  # (1 + 4) / 2 and (0 + 9) / 2


def test_without_an_entry_the_loss_is_zero_and_has_a_graph():
    velocity = OLD.clone().requires_grad_()
    loss, figures = nft_objective(velocity, OLD, LATENTS, CLEAN, 0.5, torch.tensor([math.nan]), 1.0)
    loss.backward()
    assert loss == 0
    assert figures["count"] == 0
    assert figures["velocity_change"].isnan()
    near(velocity.grad, torch.zeros(1, 2))


def test_micro_batches_add_up():
    generator = torch.Generator().manual_seed(0)
    velocity, old, latents, clean = torch.randn(4, 6, 3, 2, generator=generator).unbind()
    advantage = torch.tensor([1.0, -0.3, math.nan, 0.2, 0.0, -2.0])
    whole, _ = nft_objective(velocity, old, latents, clean, 0.7, advantage, 0.5)
    parts = [
        nft_objective(velocity[p], old[p], latents[p], clean[p], 0.7, advantage[p], 0.5, normaliser=5)[0]
        for p in (slice(0, 2), slice(2, 6))
    ]
    near(whole, torch.stack(parts).sum())


def test_equal_scales_make_all_steps_pull_equally():
    sigmas = sigma_schedule(10, 3.0)
    scales = nft_scales("equal", sigmas, range(9), over=range(9))
    assert scales.mean() == pytest.approx(1)
    pulls = scales * nft_pull(sigmas[:9])
    near(pulls, pulls[0].expand(9))
    for advantage in (1.0, -0.5):  # the gradients themselves: the same distance of velocities at every step
        found = []
        for step, scale in enumerate(scales.tolist()):
            sigma = sigmas[step].item()
            velocity = OLD.clone().requires_grad_()
            latents = CLEAN + sigma * TRUE
            args = (OLD, latents, CLEAN, sigma, torch.tensor([advantage]), 1.0)
            nft_objective(velocity, *args, scale=scale)[0].backward()
            found.append(velocity.grad)
        torch.testing.assert_close(found, [found[0]] * 9)


def test_scales_of_a_window_are_those_of_the_whole_range():
    sigmas = sigma_schedule(10, 3.0)
    whole = nft_scales("equal", sigmas, range(9), over=range(9))
    near(nft_scales("equal", sigmas, [2, 5], over=range(9)), whole[[2, 5]])
    near(nft_scales("none", sigmas, [2, 5], over=range(9)), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="cannot be trained"):
        nft_scales("equal", sigmas, [9], over=range(9))


def test_what_does_not_fit_is_refused():
    advantage = torch.tensor([1.0])
    with pytest.raises(ValueError, match="must be equal"):
        nft_objective(OLD, OLD[:, :1], LATENTS, CLEAN, 0.5, advantage, 1.0)
    with pytest.raises(ValueError, match="one advantage per image"):
        nft_objective(OLD, OLD, LATENTS, CLEAN, 0.5, torch.ones(2), 1.0)
    for sigma, beta, further, name in ((0, 1, {}, "sigma"), (0.5, 0, {}, "beta"), (0.5, 1, {"normaliser": 0}, "norm")):
        with pytest.raises(ValueError, match=f"{name}.* use a positive number"):
            nft_objective(OLD, OLD, LATENTS, CLEAN, sigma, advantage, beta, **further)
