"""The gradient of an update: which images enter it, and what clipping and KL do to it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.config import RunConfig
from customized_grpo.policies.base import Policy
from customized_grpo.training.rollout import Rollout
from customized_grpo.training.trainer import Trainer
from customized_grpo.training.watch import TrainingError
from gradients import gradients_of

MakeTrainer = Callable[..., Trainer]
# No clipping, so that the optimiser gets the gradient of the loss; and a learning rate that changes no weight.
STILL = ("optimizer.lr=1e-30", "optimizer.max_grad_norm=1e9")


@pytest.fixture
def trainer(make_trainer: MakeTrainer, excite: Callable[[Policy], None]) -> Trainer:
    """Two groups of six images, and an adapter with a gradient in every weight."""
    trainer = make_trainer("groups.size=6", *STILL)
    excite(trainer.policy)
    return trainer


def rolled(trainer: Trainer) -> Rollout:
    return trainer.sampler.rollout(
        trainer.policy,
        trainer.policy.encode(trainer.plan.batch(0)),
        trainer.config.groups.size,
        trainer.plan.window(0),
        lambda group, member: trainer.plan.seed(0, group, member),
    )


def drawn_advantages(count: int = 12, steps: int = 2) -> Tensor:
    return torch.randn(count, steps, generator=torch.Generator().manual_seed(0))


def sharded(trainer: Trainer) -> Any:
    return trainer.config.model.model_copy(update={"shard": True})


def gradient(trainer: Trainer, rollout: Rollout, advantages: Tensor) -> Tensor:
    with gradients_of(trainer) as found:
        trainer.learner.optimise(1, rollout, advantages, trainer.plan.batch(0))
    (gradient,) = found
    return gradient


def only(rollout: Rollout, images: Sequence[int]) -> Rollout:
    """The rollout reduced to these images."""
    chosen = torch.tensor(images)
    points = [
        replace(p, latents=p.latents[chosen], next_latents=p.next_latents[chosen], log_prob=p.log_prob[chosen])
        for p in rollout.trajectory
    ]
    return Rollout(rollout.images[chosen], rollout.condition[chosen], tuple(points))


def assert_same(one: Tensor, other: Tensor):
    """Within 1e-4 of the largest entry: float32 sums of different lengths differ by 1e-5 of it on some processors."""
    assert other.abs().max() > 0
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * other.abs().max().item())


# --- what counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5])  # 12 images: 5 + 5 + 2
def test_accumulation_drops_nothing(size: int, trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
    rollout, advantages = rolled(trainer), drawn_advantages()
    whole = gradient(trainer, rollout, advantages)
    passes, velocity = [], trainer.policy.velocity
    monkeypatch.setattr(trainer.policy, "velocity", lambda x, *more: passes.append(len(x)) or velocity(x, *more))
    trainer.batches.update = size
    assert_same(gradient(trainer, rollout, advantages), whole)
    assert passes == 2 * ([1] * 12 if size == 1 else [5, 5, 2])  # two steps


def test_at_ratio_one_the_gradient_is_the_policy_gradient(trainer: Trainer):
    """Minus the mean over images and steps of scale x advantage x d log-prob, written out without clipping."""
    rollout, advantages = rolled(trainer), drawn_advantages()
    found = gradient(trainer, rollout, advantages)
    total = torch.tensor(0.0)
    scales = trainer.plan.scales([p.step for p in rollout.trajectory])
    for index, point in enumerate(rollout.trajectory):
        mean, std = trainer.sampler.replay(trainer.policy, rollout, point, torch.arange(12))
        density = torch.distributions.Normal(mean, std).log_prob(point.next_latents).flatten(1).mean(1)
        total = total - (scales[index] * advantages[:, index] * density).sum() / 24
    expected = torch.autograd.grad(total, list(trainer.policy.trainable_parameters().values()))
    assert_same(found, torch.cat([g.flatten() for g in expected]))


def test_a_group_without_signal_still_counts_in_the_mean(trainer: Trainer):
    rollout, advantages = rolled(trainer), drawn_advantages()
    advantages[6:] = 0
    half = gradient(trainer, only(rollout, range(6)), advantages[:6]) / 2
    assert_same(gradient(trainer, rollout, advantages), half)


def test_an_unscored_image_has_no_influence(trainer: Trainer):
    rollout, advantages = rolled(trainer), drawn_advantages()
    advantages[3] = math.nan
    others = [image for image in range(12) if image != 3]
    without = gradient(trainer, only(rollout, others), advantages[others])
    for point in rollout.trajectory:
        point.latents[3] = math.nan  # must not be read
    assert_same(gradient(trainer, rollout, advantages), without)


def test_the_gradient_is_clipped_and_its_norm_reported_before_clipping(
    trainer: Trainer, make_config: Callable[..., RunConfig]
):
    rollout, advantages = rolled(trainer), drawn_advantages()
    free = gradient(trainer, rollout, advantages)
    limit = free.norm().item() / 10
    trainer.learner.config = make_config("groups.size=6", "optimizer.lr=1e-30", f"optimizer.max_grad_norm={limit}")
    figures = trainer.learner.optimise(1, rollout, advantages, trainer.plan.batch(0))
    assert figures["gradient_norm"] == pytest.approx(free.norm().item(), rel=1e-4)
    clipped = gradient(trainer, rollout, advantages)
    assert clipped.norm().item() == pytest.approx(limit, rel=1e-3)


def test_a_gradient_that_is_not_finite_changes_no_weight(trainer: Trainer, adapter_of: Callable[[Policy], Tensor]):
    """A finite loss may overflow in the backward pass; clipping by an infinite norm would make every weight NaN."""
    weight = next(iter(trainer.policy.trainable_parameters().values()))
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = adapter_of(trainer.policy)
    with pytest.raises(TrainingError, match=r"the gradient is not finite at update 1; lower optimizer\.lr"):
        trainer.learner.optimise(1, rolled(trainer), drawn_advantages(), trainer.plan.batch(0))
    assert torch.equal(adapter_of(trainer.policy), before)


def test_no_gradient_outlives_its_step(trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
    """It would need memory during the next rollout, and a repeated attempt would add to it."""
    rollout, advantages = rolled(trainer), drawn_advantages()
    assert gradient(trainer, rollout, advantages).abs().max() > 0
    assert all(weight.grad is None for weight in trainer.learner.parameters)

    def exhausted() -> None:
        assert any(weight.grad is not None for weight in trainer.learner.parameters)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.learner.optimizer, "step", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.learner.optimise(1, rollout, advantages, trainer.plan.batch(0))
    assert all(weight.grad is None for weight in trainer.learner.parameters)


def test_figures_of_an_update_are_means_over_scored_images(trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
    """Also if the model is sharded, when processes compute unscored images too, to run equally many passes."""
    rollout, advantages = rolled(trainer), drawn_advantages()
    advantages[3] = math.nan
    for point in rollout.trajectory:
        point.log_prob.sub_(torch.arange(12) * 1e-3)  # a different ratio for each image
    want = trainer.learner.optimise(1, rollout, advantages, trainer.plan.batch(0))
    learner = trainer.learner
    monkeypatch.setattr(learner, "config", learner.config.model_copy(update={"model": sharded(trainer)}))
    trainer.batches.update = 5
    assert trainer.learner.optimise(1, rollout, advantages, trainer.plan.batch(0)) == pytest.approx(want, rel=1e-4)


# --- ratio and clipping ----------------------------------------------------------------------------------------------


def test_one_update_per_rollout_keeps_the_ratio_at_one(make_trainer: MakeTrainer):
    trainer = make_trainer("optimizer.lr=1e-2")
    for _ in range(2):
        row = trainer.step()
        assert row["ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert row["clip_fraction"] == 0
    assert trainer.learner.steps == 2


def test_clipping_acts_from_the_second_optimiser_step_on(make_trainer: MakeTrainer):
    trainer = make_trainer("optimizer.lr=1e-2", "objective.updates_per_rollout=4")
    row = trainer.step()
    assert trainer.learner.steps == 4
    assert 0 < row["clip_fraction"] <= 0.75  # never in the first of the four
    assert row["ratio_mean"] != pytest.approx(1, abs=1e-5)
    assert row["approx_kl"] > 0


def test_a_clipped_image_has_no_gradient(trainer: Trainer):
    """The old log-probability is so low that the ratio is far above the clip range: good images are not pushed further
    up, bad ones are still pushed down."""
    rollout = rolled(trainer)
    for point in rollout.trajectory:
        point.log_prob.sub_(0.1)
    good, bad = torch.ones(12, 2), -torch.ones(12, 2)
    assert gradient(trainer, rollout, good).abs().max() == 0
    assert gradient(trainer, rollout, bad).abs().max() > 0
    assert trainer.learner.optimise(1, rollout, good, trainer.plan.batch(0))["clip_fraction"] == 1


# --- KL to the base policy -------------------------------------------------------------------------------------------


def test_kl_is_half_the_squared_distance_of_the_means_and_has_a_gradient(
    make_trainer: MakeTrainer, excite: Callable[[Policy], None]
):
    trainer = make_trainer("objective.kl=.5", *STILL)
    excite(trainer.policy)
    rollout, nothing = rolled(trainer), torch.zeros(6, 2)
    found = gradient(trainer, rollout, nothing)
    images, total, scaled = torch.arange(6), torch.tensor(0.0), torch.tensor(0.0)
    for point in rollout.trajectory:
        mean, std = trainer.sampler.replay(trainer.policy, rollout, point, images)
        with trainer.policy.base_policy(), torch.no_grad():
            base, _ = trainer.sampler.replay(trainer.policy, rollout, point, images)
        kl = ((mean - base) ** 2).flatten(1).mean(1).sum() / (2 * std**2) / 12
        total, scaled = total + kl, scaled + trainer.plan.scales([point.step]) ** 2 * kl
    expected = torch.autograd.grad(0.5 * scaled.sum(), list(trainer.policy.trainable_parameters().values()))
    assert_same(found, torch.cat([g.flatten() for g in expected]))
    figures = trainer.learner.optimise(1, rollout, nothing, trainer.plan.batch(0))
    assert figures["kl"] == pytest.approx(total.item(), rel=1e-4)
    assert figures["kl"] > 1e-3


def test_kl_alone_leads_back_to_the_base_policy(make_trainer: MakeTrainer, excite: Callable[[Policy], None]):
    trainer = make_trainer("objective.kl=1", "optimizer.lr=3e-3", "optimizer.weight_decay=0")
    excite(trainer.policy)
    rollout, nothing, samples = rolled(trainer), torch.zeros(6, 2), trainer.plan.batch(0)
    distances = [trainer.learner.optimise(1, rollout, nothing, samples)["kl"] for _ in range(8)]
    assert distances[-1] < 0.5 * distances[0]


def test_kl_changes_the_learnt_weights(make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor], tmp_path):
    """From the second optimiser step on: at the first the policy equals the base, where the gradient of KL is zero."""
    adapters, kls = [], []
    for kl in (0, 10):
        settings = ("optimizer.lr=1e-2", "objective.updates_per_rollout=2", f"output={tmp_path / str(kl)}")
        trainer = make_trainer(f"objective.kl={kl}", *settings)
        kls.append(trainer.step().get("kl"))
        adapters.append(adapter_of(trainer.policy))
    assert not torch.equal(*adapters)
    assert kls[0] is None
    assert kls[1] > 0
