"""Several optimiser steps on one rollout, over disjoint images, and the trust regions that act between them."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from customized_grpo.config import RunConfig
from customized_grpo.policies.base import Policy
from customized_grpo.training.record import Means
from customized_grpo.training.rollout import Rollout
from customized_grpo.training.trainer import Trainer
from gradients import gradients_of
from runs import SMALL

MakeTrainer = Callable[..., Trainer]
MakeConfig = Callable[..., RunConfig]
# No clipping, so that the optimiser gets the gradient of the loss; and a learning rate that changes no weight.
STILL = ("optimizer.lr=1e-30", "optimizer.max_grad_norm=1e9")
TRUST = ("clip", "dppo", "guard")


def rolled(trainer: Trainer) -> Rollout:
    plan = trainer.plan
    seed_of = lambda group, member: plan.seed(0, group, member)  # noqa: E731
    condition = trainer.policy.encode(plan.batch(0))
    return trainer.sampler.rollout(trainer.policy, condition, trainer.config.groups.size, plan.window(0), seed_of)


def gradients(trainer: Trainer, rollout: Rollout, advantages: Tensor) -> list[Tensor]:
    with gradients_of(trainer) as found:
        trainer.learner.optimise(1, rollout, advantages, trainer.plan.batch(0))
    return found


def assert_same(one: Tensor, other: Tensor):
    assert other.abs().max() > 0
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * other.abs().max().item())


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The figures of every micro-batch, in order."""
    found: list[dict[str, float]] = []
    add = Means.add

    def recording(self: Means, diagnostics: dict[str, Tensor]) -> None:
        found.append({name: float(value) for name, value in diagnostics.items()})
        add(self, diagnostics)

    monkeypatch.setattr(Means, "add", recording)
    return found


# --- which images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "parts"), [(12, 3), (12, 1), (5, 2), (3, 3), (8, 5)])
def test_minibatches_divide_every_group_evenly(size: int, parts: int, make_trainer: MakeTrainer):
    trainer = make_trainer(f"groups.size={size}", f"objective.minibatches={parts}")
    minibatches = torch.stack(trainer.learner._minibatches(3 * size))
    assert minibatches.shape == (parts, 3 * size)
    assert (minibatches.sum(dim=0) == 1).all()  # every image in exactly one
    counts = minibatches.view(parts, 3, size).sum(dim=2)
    assert (counts == counts[:, :1]).all()  # the same members of every group
    assert counts.max() - counts.min() == (size % parts > 0)


@pytest.mark.parametrize("size", [1, 64])  # accumulated over micro-batches, or at once
def test_each_step_has_the_mean_gradient_over_its_own_scored_images(
    size: int, make_trainer: MakeTrainer, make_config: MakeConfig, excite: Callable[[Policy], None]
):
    """Two groups of five images in two minibatches: members 0 to 2 and 3 to 4; one of the first is unscored."""
    whole = (*STILL, "groups.size=5")
    trainer = make_trainer(*whole, "objective.minibatches=2")
    excite(trainer.policy)
    rollout = rolled(trainer)
    advantages = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    advantages[6] = math.nan
    trainer.batches.update = size
    found = gradients(trainer, rollout, advantages)
    assert trainer.learner.steps == len(found) == 2
    trainer.learner.config, trainer.batches.update = make_config(*whole), 64
    for gradient, images in zip(found, ([0, 1, 2, 5, 7], [3, 4, 8, 9]), strict=True):
        alone = torch.full_like(advantages, math.nan)
        alone[images] = advantages[images]
        (expected,) = gradients(trainer, rollout, alone)
        assert_same(gradient, expected)
    # By hand for the second: the sum over 4 images and 2 steps, divided by 8.
    total, scales = torch.tensor(0.0), trainer.plan.scales([point.step for point in rollout.trajectory])
    for index, point in enumerate(rollout.trajectory):
        chosen = torch.tensor([3, 4, 8, 9])
        mean, std = trainer.sampler.replay(trainer.policy, rollout, point, chosen)
        density = torch.distributions.Normal(mean, std).log_prob(point.next_latents[chosen]).flatten(1).mean(1)
        total = total - (scales[index] * advantages[chosen, index] * density).sum() / 8
    by_hand = torch.autograd.grad(total, list(trainer.policy.trainable_parameters().values()))
    assert_same(found[1], torch.cat([g.flatten() for g in by_hand]))


def test_a_minibatch_without_signal_is_skipped(make_trainer: MakeTrainer, excite: Callable[[Policy], None]):
    trainer = make_trainer("groups.size=4", "objective.minibatches=2", "objective.updates_per_rollout=3")
    excite(trainer.policy)
    rollout, advantages = rolled(trainer), torch.ones(8, 2)
    advantages[[0, 1, 4, 5]] = 0
    assert len(gradients(trainer, rollout, advantages)) == trainer.learner.steps == 3
    advantages[[2, 3, 6, 7]] = math.nan
    row = trainer.learner.optimise(1, rollout, advantages, trainer.plan.batch(0))
    assert row == {"gradient_norm": 0.0}
    assert trainer.learner.steps == 3


def test_the_flat_images_of_a_minibatch_still_have_a_kl_term(
    make_trainer: MakeTrainer, excite: Callable[[Policy], None]
):
    trainer = make_trainer(*STILL, "groups.size=4", "objective.minibatches=2", "objective.kl=1")
    excite(trainer.policy)
    assert len(gradients(trainer, rolled(trainer), torch.zeros(8, 2))) == 2


# --- the ratio -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", TRUST)
def test_the_ratio_is_one_in_the_first_minibatch_and_not_in_the_second(
    trust: str, make_trainer: MakeTrainer, recorded: list[dict[str, float]]
):
    trainer = make_trainer(
        *("groups.size=4", "objective.minibatches=2", "optimizer.lr=1e-2", "objective.clip_range=1e-4"),
        *(f"objective.trust={trust}", "objective.step_scale=none"),
    )
    row = trainer.step()
    assert trainer.learner.steps == 2
    first, second = recorded  # four images at two denoising steps each
    assert first["count"] == second["count"] == 8
    assert first["ratio_max_deviation"] < 1e-5
    assert first["clip_fraction"] == 0
    assert second["ratio_max_deviation"] > 1e-4
    assert second["clip_fraction"] > 0
    for name in ("ratio_mean", "clip_fraction", "approx_kl"):
        assert row[name] == pytest.approx((first[name] + second[name]) / 2)


@pytest.mark.parametrize("trust", TRUST)
def test_dropped_images_have_no_gradient(
    trust: str, make_trainer: MakeTrainer, excite: Callable[[Policy], None], recorded: list[dict[str, float]]
):
    """After the weights have moved, the images whose ratio went the way of their advantage are left alone."""
    trainer = make_trainer(
        *(*STILL, "objective.step_scale=none", f"objective.trust={trust}"),
        *("objective.clip_range=1e-9", "objective.max_divergence=1e-9"),
    )
    rollout = rolled(trainer)
    excite(trainer.policy)  # moves every mean far away from what sampled
    for point in rollout.trajectory:
        mean, std = trainer.sampler.replay(trainer.policy, rollout, point, torch.arange(6))
        old = torch.zeros_like(mean) if point.mean is None else point.mean
        new = torch.distributions.Normal(mean, std).log_prob(point.next_latents).flatten(1).mean(1)
        bias = ((mean - old) ** 2).flatten(1).mean(1) / (2 * std**2) if trust == "guard" else 0
        ratio = new - point.log_prob + bias
        for sign in (1, -1):
            column = [p.step for p in rollout.trajectory].index(point.step)
            advantages = torch.full((6, 2), math.nan)
            advantages[:, column] = sign
            recorded.clear()
            trainer.learner.optimise(1, rollout, advantages, trainer.plan.batch(0))
            (figures,) = recorded
            assert figures["clip_fraction"] == pytest.approx((sign * ratio > 0).float().mean().item())
            dropped = sign * ratio > 0
            advantages[~dropped, column] = math.nan
            for gradient in gradients(trainer, rollout, advantages):
                assert gradient.abs().max() == 0


@pytest.mark.parametrize(("trust", "kept"), [("clip", False), ("dppo", True), ("guard", True)])
def test_the_means_that_sampled_are_kept_only_for_a_trust_region_that_reads_them(
    trust: str, kept: bool, make_trainer: MakeTrainer
):
    trainer = make_trainer(f"objective.trust={trust}", "objective.step_scale=none")
    rollout = rolled(trainer)
    for point in rollout.trajectory:
        assert (point.mean is not None) is kept
        if point.mean is not None:
            mean, _ = trainer.sampler.replay(trainer.policy, rollout, point, torch.arange(6))
            torch.testing.assert_close(mean, point.mean, atol=1e-5, rtol=0)


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", TRUST)
def test_a_resumed_run_with_minibatches_equals_an_uninterrupted_one(
    trust: str, make_trainer: MakeTrainer, tmp_path: Path
):
    settings = (
        "window={strategy: scattered, size: 2}",
        *(*SMALL, "sampling.num_steps=5", "noise.steps=all"),
        *(f"objective.trust={trust}", "objective.step_scale=none", "objective.minibatches=2", "save_every=1"),
        *("optimizer.lr=1e-2", "optimizer.warmup=3"),
    )
    make_trainer(*settings, "updates=3", f"output={tmp_path / 'whole'}").train()
    make_trainer(*settings, "updates=1", f"output={tmp_path / 'halves'}").train()
    make_trainer(*settings, "updates=3", f"output={tmp_path / 'halves'}", resume=True).train()
    whole, halves = (
        (tmp_path / name / "adapter" / "pytorch_lora_weights.safetensors").read_bytes() for name in ("whole", "halves")
    )
    assert whole == halves


@pytest.mark.parametrize(("minibatches", "passes"), [(1, 1), (3, 1), (2, 2)])
def test_warm_up_counts_rollouts(minibatches: int, passes: int, make_trainer: MakeTrainer):
    """Two rollouts of warm-up, whatever the number of optimiser steps on each."""
    trainer = make_trainer(
        *("optimizer.lr=4e-3", "optimizer.warmup=2", "groups.prompts=1"),
        *(f"objective.minibatches={minibatches}", f"objective.updates_per_rollout={passes}"),
    )
    steps = minibatches * passes
    rates = [trainer.plan.lr(step) for step in range(3 * steps)]
    assert rates == pytest.approx([4e-3 * min((step + 1) / (2 * steps), 1) for step in range(3 * steps)])
