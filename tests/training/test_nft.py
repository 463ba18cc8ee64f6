"""Training with DiffusionNFT: the rollout, the copy of the adapter that samples, and whole runs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.policies.base import Policy
from customized_grpo.training.advice import notices, restraint
from customized_grpo.training.forward import ForwardSampler, NoisedPoint
from customized_grpo.training.rollout import Rollout, derive_seed, generate
from customized_grpo.training.trainer import Trainer
from gradients import gradients_of
from program import start
from runs import SMALL, rows_of

MakeTrainer = Callable[..., Trainer]
AdapterOf = Callable[[Policy], Tensor]
NFT = ("objective.kind=nft", "optimizer.lr=1e-2")
STILL = ("objective.kind=nft", "optimizer.lr=1e-30", "optimizer.max_grad_norm=1e9")


def sampler_of(trainer: Trainer) -> ForwardSampler:
    assert trainer.forward is not None
    return trainer.forward


def rolled(trainer: Trainer, **further: Any) -> Rollout[NoisedPoint]:
    plan, policy = trainer.plan, trainer.policy
    seed_of = lambda group, member: plan.seed(0, group, member)  # noqa: E731
    steps, size = plan.window(0), trainer.config.groups.size
    return sampler_of(trainer).rollout(policy, policy.encode(plan.batch(0)), size, steps, seed_of, **further)


def gradients(trainer: Trainer, rollout: Rollout[NoisedPoint], advantages: Tensor) -> list[Tensor]:
    with gradients_of(trainer) as found:
        trainer.learner.optimise(1, rollout, advantages, trainer.plan.batch(0))
    return found


# --- the rollout -----------------------------------------------------------------------------------------------------


def test_images_are_those_of_the_solver_from_their_own_noise(
    make_trainer: MakeTrainer, excite: Callable[[Policy], None]
):
    trainer = make_trainer(*NFT)
    policy, plan = trainer.policy, trainer.plan
    rollout = rolled(trainer)
    sigmas = sampler_of(trainer).sigmas
    seeds = [plan.seed(0, group, member) for group in range(2) for member in range(3)]
    torch.testing.assert_close(rollout.images, generate(policy, rollout.condition, sigmas, seeds), atol=1e-5, rtol=0)
    for group in rollout.images.unflatten(0, (2, 3)):
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert (group[one] - group[other]).abs().max() > 0.05
    excite(policy)  # the copy that samples stays as it was
    torch.testing.assert_close(rolled(trainer).images, rollout.images, atol=1e-5, rtol=0)


def test_points_are_the_images_noised_again(make_trainer: MakeTrainer):
    trainer = make_trainer(*NFT)
    policy, plan = trainer.policy, trainer.plan
    rollout = rolled(trainer)
    assert [point.step for point in rollout.trajectory] == list(plan.window(0))
    seeds = [plan.seed(0, group, member) for group in range(2) for member in range(3)]
    start = policy.noise(rollout.condition, seeds)
    for point in rollout.trajectory:
        assert point.sigma == sampler_of(trainer).sigmas[point.step].item()
        torch.testing.assert_close(policy.decode(point.clean, rollout.condition), rollout.images)
        eps = policy.noise(rollout.condition, [derive_seed(seed, "forward", point.step) for seed in seeds])
        torch.testing.assert_close(point.latents, (1 - point.sigma) * point.clean + point.sigma * eps)
        assert abs(torch.corrcoef(torch.stack([eps.flatten(), start.flatten()]))[0, 1]) < 0.2  # not the start again
        velocity = policy.velocity(point.latents, point.sigma, rollout.condition)
        torch.testing.assert_close(point.old_velocity, velocity.detach(), atol=1e-5, rtol=1e-5)
        assert not point.old_velocity.requires_grad


def test_an_image_does_not_depend_on_batches_or_on_what_others_train(make_trainer: MakeTrainer):
    trainer = make_trainer(*NFT)
    together, count = rolled(trainer), len(trainer.plan.window(0))
    object.__setattr__(sampler_of(trainer), "batch", 4)  # a batch of four and the remainder
    seen: list[slice] = []
    trained = torch.tensor([[True, False], [True, True], [False, True], [True, False], [True, False], [True, False]])
    apart = rolled(trainer, ready=lambda images, part: seen.append(part), trained=trained[:, :count])  # noqa: ARG005
    assert seen == [slice(0, 4), slice(4, 6)]
    torch.testing.assert_close(apart.images, together.images, atol=1e-5, rtol=0)
    for column, (one, other) in enumerate(zip(apart.trajectory, together.trajectory, strict=True)):
        torch.testing.assert_close(one.latents, other.latents, atol=1e-4, rtol=0)
        wanted = trained[:, column]
        torch.testing.assert_close(one.old_velocity[wanted], other.old_velocity[wanted], atol=1e-4, rtol=0)


# --- the update ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 64])  # accumulated over micro-batches, or at once
def test_the_gradient_of_each_minibatch_by_hand(
    size: int, make_trainer: MakeTrainer, excite: Callable[[Policy], None]
):
    """Two groups of four; members 0, 1 and then 2, 3. One image of the first minibatch is unscored."""
    trainer = make_trainer(*STILL, "groups.size=4", "objective.minibatches=2", "objective.beta=.5")
    rollout, policy = rolled(trainer), trainer.policy
    excite(policy)  # away from the policy that sampled
    trainer.batches.update = size
    advantages = 2 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    advantages[4] = math.nan
    found = gradients(trainer, rollout, advantages)
    scales = trainer.plan.scales([point.step for point in rollout.trajectory])
    for gradient, images in zip(found, ([0, 1, 5], [2, 3, 6, 7]), strict=True):
        total = torch.tensor(0.0)
        for column, point in enumerate(rollout.trajectory):
            at, sigma = torch.tensor(images), point.sigma
            change = policy.velocity(point.latents[at], sigma, rollout.condition[at]) - point.old_velocity[at]
            for sign in (1, -1):
                guess = point.latents[at] - sigma * (point.old_velocity[at] + sign * 0.5 * change)
                share = 0.5 + sign * advantages[at, column].clamp(-1, 1) / 2
                error = (guess - point.clean[at]).square().flatten(1).mean(1)
                total = total + scales[column].float() * (share * error).sum() / (2 * len(images))
        by_hand = torch.cat([g.flatten() for g in torch.autograd.grad(total, trainer.learner.parameters)])
        assert by_hand.abs().max() > 0
        torch.testing.assert_close(gradient, by_hand, rtol=0, atol=1e-4 * by_hand.abs().max().item())


def test_flat_groups_pull_only_back_to_the_policy_that_sampled(
    make_trainer: MakeTrainer, excite: Callable[[Policy], None]
):
    trainer = make_trainer(*STILL)
    rollout = rolled(trainer)
    (scored,) = gradients(trainer, rollout, torch.ones(6, 2))
    (nothing,) = gradients(trainer, rollout, torch.zeros(6, 2))
    assert nothing.norm() < 1e-4 * scored.norm()
    excite(trainer.policy)
    (back,) = gradients(trainer, rollout, torch.zeros(6, 2))
    assert back.norm() > 0
    row = trainer.learner.optimise(1, rollout, torch.full((6, 2), math.nan), trainer.plan.batch(0))
    assert row == {"gradient_norm": 0.0}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_policy_moves_towards_good_images_and_away_from_bad_ones(sign: int, make_trainer: MakeTrainer):
    """Measured at the points of one image, against its own velocity eps - x0 = (x_sigma - x0) / sigma."""
    trainer = make_trainer("objective.kind=nft", "groups.prompts=1", "optimizer.lr=1e-3")
    rollout, policy, first = rolled(trainer), trainer.policy, torch.tensor([0])
    advantages = torch.full((3, 2), math.nan)
    advantages[0] = sign

    @torch.no_grad()
    def error() -> Tensor:
        errors = [
            policy.velocity(point.latents[first], point.sigma, rollout.condition[first])
            - (point.latents - point.clean)[first] / point.sigma
            for point in rollout.trajectory
        ]
        return torch.cat(errors).square().mean()

    before = error()
    for _ in range(3):
        trainer.learner.optimise(1, rollout, advantages, trainer.plan.batch(0))
    assert sign * (before - error()) > 0


# --- the copy that samples -------------------------------------------------------------------------------------------


def test_the_copy_follows_once_per_rollout(make_trainer: MakeTrainer, adapter_of: AdapterOf):
    """Two optimiser steps per rollout, one step of the copy: old <- .25 old + .75 new."""
    trainer = make_trainer(*NFT, "objective.old_decay=.25", "objective.minibatches=2")
    old = adapter_of(trainer.policy)
    for _ in range(2):
        trainer.step()
        old = 0.25 * old + 0.75 * adapter_of(trainer.policy)
        with sampler_of(trainer).old.in_place():
            torch.testing.assert_close(adapter_of(trainer.policy), old)
    assert trainer.learner.steps == 4
    assert not torch.equal(old, adapter_of(trainer.policy))


def test_without_decay_the_adapter_itself_samples(make_trainer: MakeTrainer):
    trainer = make_trainer(*NFT, "objective.old_decay=0")
    rows = [trainer.step() for _ in range(3)]
    assert all(row["velocity_change"] < 1e-8 for row in rows)  # rounding


@pytest.mark.parametrize("more", ["objective.old_decay=.9", "objective.minibatches=3"])
def test_with_decay_or_minibatches_the_velocity_has_changed(more: str, make_trainer: MakeTrainer):
    trainer = make_trainer(*NFT, "objective.old_decay=0", more)
    rows = [trainer.step() for _ in range(3)]
    assert all(row["velocity_change"] > 1e-7 for row in rows[1:])


@pytest.mark.parametrize("more", [(), ("objective.minibatches=2", "adapter.ema.decay=.5", "adapter.ema.every=1")])
def test_a_resumed_run_equals_an_uninterrupted_one(more: tuple[str, ...], make_trainer: MakeTrainer, tmp_path: Path):
    settings = (*SMALL, *NFT, "objective.old_decay=.5", "save_every=2", "evaluation.every=2", *more)
    unbroken = make_trainer(*settings, "updates=4", f"output={tmp_path / 'whole'}")
    unbroken.train()
    make_trainer(*settings, "updates=2").train()
    resumed = make_trainer(*settings, "updates=4", resume=True)
    resumed.train()
    run, other = unbroken.directory.path, resumed.directory.path
    names = ["adapter", "checkpoints/step-00004", "checkpoints/step-00004/old", *(["adapter-ema"] if more else [])]
    for name in names:
        assert (run / name / ADAPTER_FILE).read_bytes() == (other / name / ADAPTER_FILE).read_bytes()
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert rows_of(run, log) == rows_of(other, log)
    assert not list(run.glob("adapter-old*"))  # no result of the run
    one, two = (load_file(run / name / ADAPTER_FILE) for name in ("adapter", "checkpoints/step-00004/old"))
    assert any(not torch.equal(one[name], two[name]) for name in one)


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_row_has_the_figures_of_its_kind(make_trainer: MakeTrainer):
    trainer = make_trainer(*NFT)
    row = trainer.step()
    assert row["gradient_norm"] > 0
    assert row["velocity_change"] < 1e-8
    assert not {"ratio_mean", "clip_fraction", "approx_kl"} & set(row)
    assert trainer.ratio_checks == 0


def test_steps_pull_as_sigma_squared_or_equally(make_trainer: MakeTrainer, tmp_path: Path):
    trainer = make_trainer(*NFT, "objective.step_scale=none")
    sigmas = trainer.plan.sigmas[:3].double()
    torch.testing.assert_close(trainer.plan.pull(range(3)), sigmas**2)
    even = make_trainer(*NFT, f"output={tmp_path / 'even'}").plan.pull(range(3))
    torch.testing.assert_close(even, even[0].expand(3))


def test_the_report_reads_such_a_run(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    trainer = make_trainer(*SMALL, *NFT, "updates=2", "evaluation.every=1")
    trainer.train()
    page = tmp_path / "page.html"
    assert start(("report", trainer.directory.path, "--output", page), monkeypatch, capsys).code == 0
    assert "Which step pulls where" in page.read_text(encoding="utf-8")


def test_each_image_may_train_its_own_steps(make_trainer: MakeTrainer):
    scattered = ("window={strategy: scattered, size: 2}", "sampling.num_steps=6", "window.last=4")
    trainer = make_trainer(*NFT, *scattered, "objective.minibatches=2")
    rows = [trainer.step() for _ in range(2)]
    assert all(row["gradient_norm"] > 0 for row in rows)


def test_what_a_user_is_told(make_trainer: MakeTrainer, tmp_path: Path):
    constant = "weighting.kind=constant"
    unread = ("objective.clip_range=1e-3", "objective.max_divergence=1e-3", "noise.dynamics=dance", "noise.level=.5")
    trainer = make_trainer("objective.kind=nft", constant, *unread)
    assert notices(trainer.plan) == [
        "objective.kind=nft has no ratio to limit: objective.clip_range has no effect",
        "objective.kind=nft has no ratio to limit: objective.max_divergence has no effect",
        *(f"objective.kind=nft samples without noise: noise.{key} has no effect" for key in ("dynamics", "level")),
    ]
    assert restraint(trainer.plan) == trainer.watch.restraint == "objective.beta=2"
    other = make_trainer(constant, "objective.beta=.5", "objective.old_decay=.5", f"output={tmp_path / 'other'}")
    assert notices(other.plan) == [
        f"only objective.kind=nft reads objective.{key}: it has no effect" for key in ("beta", "old_decay")
    ]
    assert other.watch.restraint == "objective.kl=0.01"
