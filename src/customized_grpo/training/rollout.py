"""Groups of images and the trajectory points that training needs.

Members of a group share the initial noise. The steps before the first stochastic one are deterministic, so they are
the same for the whole group: computed once, then repeated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.algorithm import Dynamics, log_prob, step_distribution
from customized_grpo.policies.base import Condition, Policy


@dataclass(frozen=True)
class Point:
    """One trained transition of B images: everything that replaying it needs, the true step included."""

    step: int
    sigma: float
    sigma_next: float
    latents: Tensor  # [B, ...] at sigma
    next_latents: Tensor  # [B, ...] at sigma_next, as sampled
    log_prob: Tensor  # [B] under the policy that sampled


@dataclass(frozen=True)
class Rollout:
    """P groups of G images, B = P G in the order of the prompts, and the transitions that are trained."""

    images: Tensor  # [B, 3, H, W] in [0, 1], on the CPU
    condition: Condition  # of the B images
    trajectory: tuple[Point, ...]


def derive_seed(*parts: object) -> int:
    """A seed from what an image is (run, update, sample, member): the same on every rank and batch."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def _gaussian(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise in the shape of `like` [B, ...], one generator per image, drawn on the CPU."""
    return torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators]).to(like)


def denoise(policy: Policy, latents: Tensor, condition: Condition, sigmas: Tensor, steps: range) -> Tensor:
    """Deterministic steps (Euler) from one point of the grid to another."""
    for step in steps:
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        velocity = policy.velocity(latents, sigma, condition)
        latents, _ = step_distribution("ode", latents, velocity, sigma, sigma_next, 0.0, sigmas[1])
    return latents


@torch.no_grad()
def generate(policy: Policy, condition: Condition, sigmas: Tensor, seeds: Sequence[int]) -> Tensor:
    """Images [N, 3, H, W] in [0, 1] as a user gets them: deterministic, one seed per image."""
    latents = policy.noise(condition, seeds)
    return policy.decode(denoise(policy, latents, condition, sigmas, range(len(sigmas) - 1)), condition)


@dataclass(frozen=True)
class Sampler:
    """How groups are sampled: the grid, the dynamics of the stochastic steps and the images per forward pass."""

    sigmas: Tensor  # [T + 1]
    dynamics: Dynamics
    noise_level: float
    batch: int

    @torch.no_grad()
    def rollout(
        self,
        policy: Policy,
        condition: Condition,
        size: int,
        steps: Sequence[int],
        seed_of: Callable[[int, int | None], int],
        ready: Callable[[Tensor, slice], None] = lambda images, part: None,  # noqa: ARG005
    ) -> Rollout:
        """`size` images for each entry of `condition`; noise at `steps` (ascending), ODE at all others.

        seed_of(group, member) seeds an image's noise; member None seeds what the group starts from.
        ready(images, part) is called with each batch of finished images and where they stand among the B.
        """
        total = len(self.sigmas) - 1
        start = policy.noise(condition, [seed_of(group, None) for group in range(len(condition))])
        prefix = [
            denoise(policy, start[part], condition[part], self.sigmas, range(steps[0]))
            for part in _parts(len(condition), self.batch)
        ]
        latents = torch.cat(prefix).repeat_interleave(size, dim=0)
        members = condition.repeat(size)
        generators = [
            torch.Generator().manual_seed(seed_of(group, member))
            for group in range(len(condition))
            for member in range(size)
        ]
        images, points = [], []
        for part in _parts(len(members), self.batch):
            x, passed = self._stochastic(policy, latents[part], members[part], steps, generators[part])
            x = denoise(policy, x, members[part], self.sigmas, range(steps[-1] + 1, total))
            images.append(policy.decode(x, members[part]).cpu())  # for the rewards; the update needs the memory
            ready(images[-1], part)
            points.append(passed)
        trajectory = tuple(_join(batches) for batches in zip(*points, strict=True))
        return Rollout(torch.cat(images), members, trajectory)

    def _stochastic(
        self,
        policy: Policy,
        latents: Tensor,
        condition: Condition,
        steps: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, list[Point]]:
        points = []
        for step in range(steps[0], steps[-1] + 1):
            if step not in steps:
                latents = denoise(policy, latents, condition, self.sigmas, range(step, step + 1))
                continue
            sigma, sigma_next = self.sigmas[step].item(), self.sigmas[step + 1].item()
            mean, std = self.distribution(policy, latents, condition, sigma, sigma_next)
            sample = mean + std * _gaussian(mean, generators)
            points.append(Point(step, sigma, sigma_next, latents, sample, log_prob(sample, mean, std)))
            latents = sample
        return latents, points

    def replay(self, policy: Policy, rollout: Rollout, point: Point, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of a stored transition under the current policy, by the function that sampled it."""
        condition = rollout.condition[images]
        return self.distribution(policy, point.latents[images], condition, point.sigma, point.sigma_next)

    def worst_change(self, policy: Policy, rollout: Rollout, images: Tensor) -> float:
        """Largest difference between replayed and stored log-probabilities of these images; NaN where any is."""
        changes = []
        for point in rollout.trajectory:
            some = images[images < len(point.latents)]
            replayed = log_prob(point.next_latents[some], *self.replay(policy, rollout, point, some))
            changes.append((replayed - point.log_prob[some]).detach().abs())
        return torch.cat(changes).max().item()

    def distribution(
        self, policy: Policy, latents: Tensor, condition: Condition, sigma: float, sigma_next: float
    ) -> tuple[Tensor, Tensor]:
        """The step as a Gaussian under `policy`: sampling and replaying both come through here."""
        velocity = policy.velocity(latents, sigma, condition)
        return step_distribution(self.dynamics, latents, velocity, sigma, sigma_next, self.noise_level, self.sigmas[1])


def _parts(total: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover everything: no remainder is dropped."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _join(batches: Sequence[Point]) -> Point:
    first = batches[0]
    tensors = {
        name: torch.cat([getattr(p, name) for p in batches]) for name in ("latents", "next_latents", "log_prob")
    }
    return Point(first.step, first.sigma, first.sigma_next, **tensors)
