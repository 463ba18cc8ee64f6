"""Entries of several steps in one pass: the gradient is that of a pass for each step, and the ratio starts at 1."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithm import (
    clipped_objective,
    divergence_objective,
    guarded_objective,
    kl_to_base,
    log_prob,
    nft_objective,
)
from customized_grpo.policies.base import Policy
from customized_grpo.training.micro_batch import layout
from customized_grpo.training.record import Means
from customized_grpo.training.rollout import Rollout
from customized_grpo.training.trainer import Trainer
from customized_grpo.training.watch import TrainingError
from gradients import gradients_of

MakeTrainer = Callable[..., Trainer]
STILL = ("optimizer.lr=1e-30", "optimizer.max_grad_norm=1e9")
SCATTERED = ("sampling.num_steps=8", "window={strategy: scattered, size: 3, last: 6}", "groups.size=4")
OBJECTIVES = {
    "clip": ("objective.clip_range=2e-4",),
    "clip, no scale": ("objective.step_scale=none",),
    "dppo": ("objective.trust=dppo", "objective.max_divergence=1e-4"),
    "guard": ("objective.trust=guard", "objective.step_scale=none"),
    "KL": ("objective.kl=.5",),
    "nft": ("objective.kind=nft", "objective.beta=.5"),
}


def rolled(trainer: Trainer) -> Rollout[Any]:
    plan, policy = trainer.plan, trainer.policy
    seed_of = lambda group, member: plan.seed(0, group, member)  # noqa: E731
    size, steps, trained = trainer.config.groups.size, plan.window(0), plan.trained(0)
    sampler = trainer.forward or trainer.sampler
    return sampler.rollout(policy, policy.encode(plan.batch(0)), size, steps, seed_of, trained=trained)


def drawn_advantages(trainer: Trainer) -> Tensor:
    """[B, T]; one image is unscored."""
    plan, groups = trainer.plan, trainer.config.groups
    drawn = torch.randn(groups.prompts, groups.size, len(plan.window(0)), generator=torch.Generator().manual_seed(0))
    drawn[1, 0] = math.nan
    return plan.at_trained_steps(0, drawn)


@contextmanager
def passes_of(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[float]]]:
    """The sigmas of every pass with a gradient."""
    found: list[list[float]] = []
    velocity = policy.velocity

    def seen(latents: Tensor, sigma: float | Tensor, condition: Any) -> Tensor:
        if torch.is_grad_enabled():
            found.append(torch.as_tensor(sigma).expand(len(latents)).tolist())
        return velocity(latents, sigma, condition)

    with monkeypatch.context() as patch:
        patch.setattr(policy, "velocity", seen)
        yield found


def step_by_step(trainer: Trainer, rollout: Rollout[Any], advantages: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The gradient of one minibatch, with passes of one step and one sigma each; and the means of its figures."""
    config, policy, sampler = trainer.config.objective, trainer.policy, trainer.sampler
    scored, figures = int((~advantages.isnan()).sum()), Means(*trainer.learner.figures)
    scales, parts = trainer.plan.scales([point.step for point in rollout.trajectory]).tolist(), []
    for point, column, scale in zip(rollout.trajectory, advantages.unbind(dim=1), scales, strict=True):
        at = (~column.isnan()).nonzero().flatten()
        parts += [(point, scale, column, part) for part in at.split(trainer.batches.update) if len(part)]
    for point, scale, column, at in parts:
        advantage, latents, more = column[at], point.latents[at], {"scale": scale, "normaliser": scored}
        if config.kind == "nft":
            velocity = policy.velocity(latents, point.sigma, rollout.condition[at])
            fixed = point.old_velocity[at], latents, point.clean[at], point.sigma
            loss, found = nft_objective(velocity, *fixed, advantage, config.beta, **more)
        else:
            mean, std = sampler.replay(policy, rollout, point, at)
            entries = log_prob(point.next_latents[at], mean, std), point.log_prob[at], advantage
            moved = None if point.mean is None else kl_to_base(mean, point.mean[at], std)
            if config.trust == "dppo":
                loss, found = divergence_objective(*entries, cast("Tensor", moved), config.max_divergence, **more)
            elif config.trust == "guard":
                limits = cast("Tensor", moved), std, config.clip_range
                loss, found = guarded_objective(*entries, *limits, normaliser=scored)
            else:
                loss, found = clipped_objective(*entries, config.clip_range, **more)
            if config.kl > 0:
                with policy.base_policy(), torch.no_grad():
                    base, _ = sampler.replay(policy, rollout, point, at)
                kl = kl_to_base(mean, base, std)
                loss, found["kl"] = loss + config.kl * scale**2 * kl.sum() / scored, kl.detach().mean()
        loss.backward()
        figures.add(found)
    gradient = torch.cat([cast("Tensor", weight.grad).flatten() for weight in trainer.learner.parameters])
    trainer.learner.optimizer.zero_grad(set_to_none=True)
    return gradient, figures.over(trainer.processes)


@pytest.mark.parametrize("size", [1, 5, 64])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_gradient_is_that_of_a_pass_for_each_step(
    objective: tuple[str, ...],
    size: int,
    make_trainer: MakeTrainer,
    excite: Callable[[Policy], None],
    monkeypatch: pytest.MonkeyPatch,
):
    """With single entries both have the same shapes; others round by shape, by up to 3e-6 either way of batching."""
    trainer = make_trainer(*STILL, *SCATTERED, *objective)
    rollout, advantages = rolled(trainer), drawn_advantages(trainer)
    excite(trainer.policy)  # away from the policy that sampled
    trainer.batches.update = size
    with gradients_of(trainer) as found, passes_of(trainer.policy, monkeypatch) as passes:
        row = trainer.learner.optimise(1, rollout, advantages, trainer.plan.batch(0))
    expected, figures = step_by_step(trainer, rollout, advantages)
    assert expected.norm() > 0
    assert (found[0] - expected).norm() <= (1e-6 if size == 1 else 5e-6) * expected.norm()
    assert figures == pytest.approx({name: row[name] for name in figures}, rel=1e-4, abs=1e-7)
    entries = 7 * 3  # of the eight images one is unscored
    assert [len(each) for each in passes] == {1: [1] * entries, 5: [5, 5, 5, 5, 1], 64: [entries]}[size]
    assert any(len(set(each)) > 1 for each in passes) == (size > 1)


# --- which entries share a pass --------------------------------------------------------------------------------------


def test_entries_are_taken_step_by_step():
    active = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)
    parts = [part.tolist() for part in layout(active, 4)]
    assert parts == [[[0, 0], [0, 1], [1, 1], [1, 2]], [[2, 0], [2, 2]]]
    assert layout(torch.zeros(3, 2, dtype=torch.bool), 4) == []


@pytest.mark.parametrize("size", [2, 4, 5, 12, 64])
def test_where_every_image_trains_every_step_a_pass_has_one_step(size: int):
    """Its shapes are those of the rollout's passes, also at the remainder of 12 images."""
    parts = layout(torch.ones(12, 3, dtype=torch.bool), size)
    assert all(len(part[:, 0].unique()) == 1 for part in parts)
    assert [len(part) for part in parts] == 3 * [len(part) for part in torch.arange(12).split(size)]
    assert torch.cat(parts).tolist() == [[column, image] for column in range(3) for image in range(12)]


def test_a_step_keeps_its_own_passes_if_the_batch_divides_its_images():
    """Also in a minibatch, or with a flat group: 4 of 12 images."""
    active = torch.zeros(12, 3, dtype=torch.bool)
    active[[0, 1, 6, 7]] = True
    assert all(len(part) == 2 and len(part[:, 0].unique()) == 1 for part in layout(active, 2))
    assert [part[:, 0].tolist() for part in layout(active, 64)] == [[0] * 4 + [1] * 4 + [2] * 4]


@pytest.mark.parametrize(("size", "passes"), [(1, 12), (4, 3), (64, 3)])
def test_sharded_processes_run_equally_many_passes(
    size: int, passes: int, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
):
    """One process has all twelve entries of its group, the other two; what is added to these counts nothing."""
    trainer = make_trainer("groups.size=4", "sampling.num_steps=5", "window={size: 3, last: 3}")
    rollout, learner, trainer.batches.update = rolled(trainer), trainer.learner, size
    sharded = learner.config.model_copy(update={"model": learner.config.model.model_copy(update={"shard": True})})
    monkeypatch.setattr(learner, "config", sharded)
    monkeypatch.setattr(learner, "processes", SimpleNamespace(count=2))
    advantages = torch.ones(8, 3)
    advantages[4:] = math.nan
    advantages[5, :2] = 1
    first, second = (learner._micro_batches(rollout, advantages, own) for own in (slice(0, 4), slice(4, 8)))
    assert len(first) == len(second) == passes
    counts = [[int((~batch.advantage.isnan()).sum()) for batch in batches] for batches in (first, second)]
    assert [sum(own) for own in counts] == [12, 2]
    assert all(len(batch.images) > 0 for batch in second)


# --- the ratio and errors --------------------------------------------------------------------------------------------


@pytest.fixture
def deviations(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Of the ratio from 1: the largest of every micro-batch."""
    found: list[float] = []
    add = Means.add

    def recording(self: Means, diagnostics: dict[str, Tensor]) -> None:
        found.append(float(diagnostics["ratio_max_deviation"]))
        add(self, diagnostics)

    monkeypatch.setattr(Means, "add", recording)
    return found


@pytest.mark.parametrize("trust", ["clip", "dppo", "guard"])
@pytest.mark.parametrize("batch", [3, 4, 64])  # of 6 images: the remainder of 4 is 2
def test_the_ratio_of_whole_windows_is_one_to_the_last_bit(
    batch: int, trust: str, make_trainer: MakeTrainer, excite: Callable[[Policy], None], deviations: list[float]
):
    settings = (f"groups.rollout_batch={batch}", f"groups.update_batch={batch}", f"objective.trust={trust}")
    trainer = make_trainer(*STILL, *settings, "objective.step_scale=none")
    excite(trainer.policy)
    trainer.step()
    assert len(deviations) == 2 * -(-6 // batch)
    assert set(deviations) == {0.0}


@pytest.mark.parametrize("batch", [3, 4, 64])
def test_the_ratio_of_scattered_steps_starts_at_one(
    batch: int, make_trainer: MakeTrainer, excite: Callable[[Policy], None], deviations: list[float]
):
    settings = (f"groups.rollout_batch={batch}", f"groups.update_batch={batch}", "objective.step_scale=none")
    trainer = make_trainer(*STILL, *SCATTERED, *settings)
    excite(trainer.policy)
    trainer.step()
    assert len(deviations) == -(-24 // batch)
    assert max(deviations) < 1e-5


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_entry_that_is_not_finite_is_named(objective: tuple[str, ...], make_trainer: MakeTrainer):
    """One image of the second sample at its last step, in a pass with entries of all steps and both samples."""
    trainer = make_trainer(*STILL, *SCATTERED, *objective)
    rollout, advantages, samples = rolled(trainer), drawn_advantages(trainer), trainer.plan.batch(0)
    column = int((~advantages[6].isnan()).nonzero().max())
    point = rollout.trajectory[column]
    point.latents[6] = math.inf
    message = f"not finite at update 1, denoising step {point.step}, samples {samples[1].id};"
    with pytest.raises(TrainingError, match=message):
        trainer.learner.optimise(1, rollout, advantages, samples)
