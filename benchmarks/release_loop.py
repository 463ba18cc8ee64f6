"""The training loop as the authors' release has it, for comparison: one image at a time (arXiv 2510.18263).

    noise at every step but the last, nothing shared between the images of a group, every reward asked for one image
    for each image, for each step that it trains: one pass forward and backward
    an optimiser step after each part of a group (4 of its 12 images)

The equations, the policy, the seeds and the steps that each image trains are those of the trainer, and so is the
result: its adapter after an update equals that of `Trainer.step` with the same configuration. Only the order of the
work differs. Weights belong to the true steps, unlike in the release; that costs the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from customized_grpo.algorithm import clipped_objective, log_prob
from customized_grpo.data import Sample
from customized_grpo.policies.base import Condition
from customized_grpo.rewards.scoring import score
from customized_grpo.training.record import clock
from customized_grpo.training.rollout import denoise
from customized_grpo.training.trainer import Trainer


@dataclass(frozen=True)
class Transition:
    """One trained step of one image."""

    sigma: float
    sigma_next: float
    latents: Tensor  # [1, ...] at sigma
    next_latents: Tensor  # [1, ...] at sigma_next, as sampled
    log_prob: Tensor  # [1] under the policy that sampled


@dataclass(frozen=True)
class Group:
    """The images of one prompt."""

    condition: Condition  # of one image
    images: Sequence[dict[int, Transition]]  # the transitions that each image trains, by step


def release_update(trainer: Trainer) -> dict[str, Any]:
    """The trainer's next update, in the release's order of work; returns its seconds by phase.

    trainer  with `noise.steps=all`, steps of each image's own, and the plain clipped objective
    """
    plan, update = trainer.plan, trainer.update
    trained = plan.trained(update)
    assert trained is not None, "window.strategy=scattered, window.per=image"
    samples, steps, size = plan.batch(update), plan.window(update), trainer.config.groups.size
    groups: list[Group] = []
    found: list[dict[str, Tensor]] = []
    seconds = dict[str, float]()
    for number, sample in enumerate(samples):
        part = trained[number * size : (number + 1) * size]
        group, scores = sample_group(trainer, number, sample, part, seconds)
        groups.append(group)
        found.append(scores)
    rewards = {key: torch.stack([scores[key] for scores in found]) for key in trainer.rewards}  # [P, G]
    running = trainer.shaper.observe(rewards, steps)
    advantages = trainer.shaper.advantages(rewards, trainer.shaper.column_weight(steps, running), running)
    with clock(seconds, "update"):
        train_groups(trainer, groups, plan.at_trained_steps(update, advantages))
    trainer.shaper.running = running
    trainer.update += 1
    return {"seconds": seconds}
    return {"seconds": seconds}


def sample_group(
    trainer: Trainer, number: int, sample: Sample, trained: Tensor, seconds: dict[str, float]
) -> tuple[Group, dict[str, Tensor]]:
    """A group, image by image, and its rewards [G].

    trained  [G, T]: which steps of the window each image trains
    seconds  by phase; those of the group are added
    """
    plan, policy, update = trainer.plan, trainer.policy, trainer.update
    with clock(seconds, "rollout"):
        condition = policy.encode([sample])
        noise = policy.noise(condition, [plan.seed(update, number, None)])
    scores: dict[str, list[Tensor]] = {key: [] for key in trainer.rewards}
    images = []
    for member, chosen in enumerate(trained.tolist()):
        own = {step for step, trains in zip(plan.window(update), chosen, strict=True) if trains}
        with clock(seconds, "rollout"):
            image, transitions = sample_image(trainer, condition, noise, plan.seed(update, number, member), own)
        images.append(transitions)
        with clock(seconds, "reward"):
            for key, reward in trainer.rewards.items():
                scores[key].append(score(key, reward, image, [sample]))
    return Group(condition, images), {key: torch.cat(values) for key, values in scores.items()}


@torch.no_grad()
def sample_image(
    trainer: Trainer, condition: Condition, noise: Tensor, seed: int, kept: set[int]
) -> tuple[Tensor, dict[int, Transition]]:
    """An image [1, 3, H, W] on the CPU, and its transitions at the steps `kept`."""
    policy, sampler = trainer.policy, trainer.sampler
    sigmas, generator = sampler.sigmas, torch.Generator().manual_seed(seed)
    last = len(sigmas) - 2
    latents, transitions = noise, {}
    for step in range(last):
        sigma, sigma_next = sigmas[step].item(), sigmas[step + 1].item()
        mean, std = sampler.distribution(policy, latents, condition, sigma, sigma_next)
        sample = mean + std * torch.randn(mean.shape[1:], generator=generator).to(mean)
        if step in kept:
            transitions[step] = Transition(sigma, sigma_next, latents, sample, log_prob(sample, mean, std))
        latents = sample
    latents = denoise(policy, latents, condition, sigmas, range(last, last + 1))
    return policy.decode(latents, condition).cpu(), transitions


def train_groups(trainer: Trainer, groups: Sequence[Group], advantages: Tensor) -> None:
    """Passes forward and backward of single images at single steps, and the optimiser's steps among them.

    advantages  [P G, T] at the steps of the window
    """
    plan, config = trainer.plan, trainer.config
    steps = plan.window(trainer.update)
    scales = dict(zip(steps, plan.scales(steps).tolist(), strict=True))
    part, size = config.groups.size // config.objective.minibatches, config.groups.size
    for start in range(0, size, part):
        images = [(number, member) for number in range(len(groups)) for member in range(start, start + part)]
        entries = sum(len(groups[number].images[member]) for number, member in images)
        for number, member in images:
            group = groups[number]
            at = dict(zip(steps, advantages[number * size + member].split(1), strict=True))
            for step, kept in group.images[member].items():
                mean, std = trainer.sampler.distribution(
                    trainer.policy, kept.latents, group.condition, kept.sigma, kept.sigma_next
                )
                new = log_prob(kept.next_latents, mean, std)
                advantage = at[step].to(new)
                advantage = at[step].to(new)
                loss, _ = clipped_objective(
                    new,
                    kept.log_prob,
                    advantage,
                    config.objective.clip_range,
                    scale=scales[step],
                    normaliser=entries,
                )
                loss.backward()
        apply(trainer)


def apply(trainer: Trainer) -> None:
    """An optimiser step with the gradients that are there."""
    learner = trainer.learner
    torch.nn.utils.clip_grad_norm_(learner.parameters, trainer.config.optimizer.max_grad_norm)
    for weights in learner.optimizer.param_groups:
        weights["lr"] = trainer.plan.lr(learner.steps)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.steps += 1
