"""With `step_scale: equal` every denoising step pulls on the velocity equally hard: policy, KL and clip."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from customized_grpo.training.rollout import Point, Rollout
from customized_grpo.training.trainer import Trainer

STEPS = range(9)
NOISE = {"flow": 0.9, "dance": 0.4}


class Moved:
    """A trainer whose policy's velocity is moved by `by` [B, ...], where a gradient is asked for.

    All transitions have the same noise, so that steps differ in nothing but their place on the grid.
    """

    def __init__(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
        self.trainer = trainer
        plan, velocity = trainer.plan, trainer.policy.velocity
        condition = trainer.policy.encode(plan.batch(0))
        self.rollout: Rollout = trainer.sampler.rollout(
            trainer.policy, condition, 3, plan.window(0), lambda group, member: plan.seed(0, group, member)
        )
        self.images = torch.arange(len(self.rollout.images))
        self.noise = torch.randn(self.rollout.trajectory[0].latents.shape, generator=torch.Generator().manual_seed(0))
        self.by = torch.zeros_like(self.noise)
        self.points = [self._with_noise(point) for point in self.rollout.trajectory]

        def moved(*arguments) -> Tensor:
            found = velocity(*arguments).detach()
            return found + self.by if torch.is_grad_enabled() else found

        monkeypatch.setattr(trainer.policy, "velocity", moved)

    @torch.no_grad()
    def _with_noise(self, point: Point) -> Point:
        mean, std = self.trainer.sampler.replay(self.trainer.policy, self.rollout, point, self.images)
        sample = mean + std * self.noise
        density = torch.distributions.Normal(mean, std).log_prob(sample).flatten(1).mean(1)
        return replace(point, next_latents=sample, log_prob=density)

    def losses(self, by: Tensor, advantage: float) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Norm of the gradient with respect to the velocity at each step, and the figures of each step."""
        norms, figures = [], []
        rollout, learner = replace(self.rollout, trajectory=tuple(self.points)), self.trainer.learner
        for column in range(len(self.points)):
            advantages = torch.full((len(self.images), len(self.points)), math.nan)
            advantages[:, column] = advantage
            self.by = by.clone().requires_grad_()
            (batch,) = learner._micro_batches(rollout, advantages, slice(0, len(self.images)))
            loss, found = learner._loss(batch, *learner._velocities(batch), 6)
            norms.append(torch.autograd.grad(loss, self.by)[0].norm())
            figures.append(found)
        return torch.stack(norms), figures


@pytest.fixture
def moved(make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Moved]:
    def make(dynamics: str, *overrides: str) -> Moved:
        settings = ("sampling.num_steps=10", "window={strategy: all, size: null}", f"noise.dynamics={dynamics}")
        return Moved(make_trainer(*settings, f"noise.level={NOISE[dynamics]}", *overrides), monkeypatch)

    return make


def even(values: Tensor) -> Tensor:
    return values / values.mean()


def factors(moved: Moved) -> Tensor:
    """|d mean / d velocity| / std at each step: from 1 to many, or the test would show nothing."""
    plan = moved.trainer.plan
    found = (plan.pull(STEPS) / plan.scales(STEPS)).float()
    assert found.max() > 2 * found.min()
    return found


@pytest.mark.parametrize("dynamics", NOISE)
@pytest.mark.parametrize(("scale", "power"), [("equal", 0), ("none", 1)])
def test_the_policy_term_pulls_equally(dynamics: str, scale: str, power: int, moved: Callable[..., Moved]):
    steps = moved(dynamics, f"objective.step_scale={scale}")
    norms, _ = steps.losses(torch.zeros_like(steps.noise), 1.0)
    torch.testing.assert_close(even(norms), even(factors(steps) ** power), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dynamics", NOISE)
@pytest.mark.parametrize(("scale", "power"), [("equal", 0), ("none", 2)])
def test_kl_pulls_equally(dynamics: str, scale: str, power: int, moved: Callable[..., Moved]):
    """A velocity that differs from the base's by 1 everywhere."""
    steps = moved(dynamics, f"objective.step_scale={scale}", "objective.kl=1")
    norms, _ = steps.losses(torch.ones_like(steps.noise), 0.0)
    torch.testing.assert_close(even(norms), even(factors(steps) ** power), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dynamics", NOISE)
@pytest.mark.parametrize(("scale", "power"), [("equal", 0), ("none", 1)])
def test_an_equal_change_of_the_velocity_is_an_equal_change_of_the_ratio(
    dynamics: str, scale: str, power: int, moved: Callable[..., Moved]
):
    """And so the clip cuts all steps or none. The change lies along the noise, and is small: ratios are curved."""
    steps = moved(dynamics, f"objective.step_scale={scale}")
    _, figures = steps.losses(1e-2 * steps.noise, 1.0)
    deviations = torch.stack([figure["ratio_max_deviation"] for figure in figures])
    torch.testing.assert_close(even(deviations), even(factors(steps) ** power), rtol=0.03, atol=0)


@pytest.mark.parametrize("dynamics", NOISE)
def test_guard_pulls_as_the_rows_of_a_run_say(dynamics: str, moved: Callable[..., Moved]):
    """Its scale is the noise of the step, and `pull` knows it."""
    steps = moved(dynamics, "objective.step_scale=none", "objective.trust=guard")
    norms, _ = steps.losses(torch.zeros_like(steps.noise), 1.0)
    torch.testing.assert_close(even(norms), even(steps.trainer.plan.pull(STEPS).float()), rtol=1e-3, atol=0)
