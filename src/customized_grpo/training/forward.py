"""Rollouts for objectives on the forward process: pictures from any solver, then noised again at the trained steps.

Every image starts from its own noise: with a deterministic solver the same noise would give a group of equal images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.policies.base import Condition, Policy
from customized_grpo.policies.shadow import Shadow
from customized_grpo.training.rollout import Rollout, denoise, derive_seed, parts_of


@dataclass(frozen=True)
class NoisedPoint:
    """B finished images, noised to one trained step."""

    step: int  # the true index t
    sigma: float
    latents: Tensor  # [B, ...] at sigma: (1 - sigma) clean + sigma eps, eps from each image's own seed
    clean: Tensor  # [B, ...] at sigma 0, as sampled
    old_velocity: Tensor  # [B, ...] of the policy that sampled; zeros for an image that does not train the step


@dataclass(frozen=True)
class ForwardSampler:
    """Samples groups with the policy `old` and no noise on the way; has the interface of `Sampler.rollout`."""

    sigmas: Tensor  # [T + 1]
    batch: int  # images per forward pass
    old: Shadow  # the copy of the adapter that samples
    finish_steps: int | None = None  # steps of second order in place of the grid's

    @torch.no_grad()
    def rollout(
        self,
        policy: Policy,
        condition: Condition,
        size: int,
        steps: Sequence[int],
        seed_of: Callable[[int, int | None], int],
        ready: Callable[[Tensor, slice], None] = lambda images, part: None,  # noqa: ARG005
        trained: Tensor | None = None,
    ) -> Rollout[NoisedPoint]:
        """`size` images for each entry of `condition`, each of them noised to `steps`; arguments of `Sampler.rollout`.

        A step's noise follows from the image's seed and the step, so no image depends on what else is trained.
        """
        members = condition.repeat(size)
        seeds = [seed_of(group, member) for group in range(len(condition)) for member in range(size)]
        images, points = [], []
        with self.old.in_place():
            for part in parts_of(len(members), self.batch):
                own, noise = members[part], policy.noise(members[part], seeds[part])
                clean = denoise(policy, noise, own, self.sigmas, range(len(self.sigmas) - 1), self.finish_steps)
                images.append(policy.decode(clean, own).cpu())
                ready(images[-1], part)
                columns = [None] * len(steps) if trained is None else trained[part].unbind(dim=1)
                at = zip(steps, columns, strict=True)
                points.append([self._noised(policy, clean, own, seeds[part], step, wanted) for step, wanted in at])
        trajectory = tuple(_join(batches) for batches in zip(*points, strict=True))
        return Rollout(torch.cat(images), members, trajectory)

    def _noised(
        self,
        policy: Policy,
        clean: Tensor,
        condition: Condition,
        seeds: Sequence[int],
        step: int,
        wanted: Tensor | None,
    ) -> NoisedPoint:
        """One batch of images at one step.

        wanted  [B]: which of them train it; others need no velocity
        """
        sigma = self.sigmas[step].item()
        eps = policy.noise(condition, [derive_seed(seed, "forward", step) for seed in seeds])
        latents = (1 - sigma) * clean + sigma * eps
        if wanted is None or wanted.all():
            return NoisedPoint(step, sigma, latents, clean, policy.velocity(latents, sigma, condition))
        at = wanted.nonzero().flatten()
        if len(at) == 0:
            at = torch.tensor([0])  # with sharded weights all processes must run the same number of passes
        old_velocity = torch.zeros_like(latents)
        old_velocity[at] = policy.velocity(latents[at], sigma, condition[at])
        return NoisedPoint(step, sigma, latents, clean, old_velocity)


def _join(batches: Sequence[NoisedPoint]) -> NoisedPoint:
    """The same step of several batches as one."""
    first = batches[0]
    tensors = (torch.cat([getattr(point, name) for point in batches]) for name in ("latents", "clean", "old_velocity"))
    return NoisedPoint(first.step, first.sigma, *tensors)
