"""The training loop as the authors' release has it, for comparison: one image at a time (arXiv 2510.18263).

    noise at every step but the last, nothing shared between the images of a group, every reward asked for one image
    for each image, for each step that it trains: one pass forward and backward
    an optimiser step after each part of the group (4 of its 12 images)

The equations, the policy, the seeds and the steps that each image trains are those of the trainer, and so is the
result: its adapter after an update equals that of `Trainer.step` with the same configuration. Only the order of the
work differs. Weights belong to the true steps, unlike in the release; that costs the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from customized_grpo.algorithm import clipped_objective, log_prob
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


def release_update(trainer: Trainer) -> dict[str, Any]:
    """The trainer's next update, of one group, in the release's order of work; returns its seconds by phase.

    trainer  with `noise.steps=all`, steps of each image's own, the plain clipped objective, and groups.prompts=1
    """
    plan, policy, update = trainer.plan, trainer.policy, trainer.update
    steps, trained = plan.window(update), plan.trained(update)
    assert trained is not None, "window.strategy=scattered, window.per=image"
    samples, seconds = plan.batch(update), dict[str, float]()
    with clock(seconds, "rollout"):
        condition = policy.encode(samples)
        noise = policy.noise(condition, [plan.seed(update, 0, None)])
    scores: dict[str, list[Tensor]] = {key: [] for key in trainer.rewards}
    group: list[dict[int, Transition]] = []  # of each image, by step
    for member, chosen in enumerate(trained):
        own = {step for step, trains in zip(steps, chosen.tolist(), strict=True) if trains}
        with clock(seconds, "rollout"):
            image, transitions = sample_image(trainer, condition, noise, plan.seed(update, 0, member), own)
        group.append(transitions)
        with clock(seconds, "reward"):
            for key, reward in trainer.rewards.items():
                scores[key].append(score(key, reward, image, samples))
    rewards = {key: torch.cat(values)[None] for key, values in scores.items()}  # [1, G]
    running = trainer.shaper.observe(rewards, steps)
    advantages = trainer.shaper.advantages(rewards, trainer.shaper.column_weight(steps, running), running)
    with clock(seconds, "update"):
        train_group(trainer, condition, group, plan.at_trained_steps(update, advantages))
    trainer.shaper.running = running
    trainer.update += 1
    return {"seconds": seconds}


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


def train_group(
    trainer: Trainer, condition: Condition, group: list[dict[int, Transition]], advantages: Tensor
) -> None:
    """Passes forward and backward of single images at single steps, and the optimiser's steps among them.

    advantages  [G, T] at the steps of the window
    """
    plan, learner, objective = trainer.plan, trainer.learner, trainer.config.objective
    steps = plan.window(trainer.update)
    scales = dict(zip(steps, plan.scales(steps).tolist(), strict=True))
    part = len(group) // objective.minibatches
    for start in range(0, len(group), part):
        images = range(start, start + part)
        normaliser = sum(len(group[image]) for image in images)
        for image in images:
            at = dict(zip(steps, advantages[image].split(1), strict=True))
            for step, kept in group[image].items():
                mean, std = trainer.sampler.distribution(
                    trainer.policy, kept.latents, condition, kept.sigma, kept.sigma_next
                )
                new = log_prob(kept.next_latents, mean, std)
                advantage = at[step].to(new)
                loss, _ = clipped_objective(
                    new, kept.log_prob, advantage, objective.clip_range, scale=scales[step], normaliser=normaliser
                )
                loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters, trainer.config.optimizer.max_grad_norm)
        for weights in learner.optimizer.param_groups:
            weights["lr"] = plan.lr(learner.steps)
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
        learner.steps += 1
