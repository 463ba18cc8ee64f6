"""Sampling groups of images, with the trajectory points that training replays.

Members of a group share the initial noise. The steps before the first stochastic one are deterministic and therefore
the same for the whole group, so they are computed once per group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from customized_grpo.algorithm import Dynamics, coarse_steps, log_prob, multistep, step_distribution
from customized_grpo.policies.base import Condition, Policy


@dataclass(frozen=True)
class Point:
    """One trained transition of B images: everything needed to replay it."""

    step: int  # the true index t
    sigma: float
    sigma_next: float
    latents: Tensor  # [B, ...] at sigma
    next_latents: Tensor  # [B, ...] at sigma_next, as sampled
    log_prob: Tensor  # [B] under the policy that sampled
    noisy: Tensor | None = None  # [B]: which images took noise, so that log_prob means something; None: all
    mean: Tensor | None = None  # [B, ...] of the policy that sampled, if the trust region needs it


# Gets the latents [B, ...] that a step expects at sigma = 0: x0^, where one Euler step from there would end.
Watch = Callable[[Tensor], None]
P = TypeVar("P")  # what is trained of B images at one step: `Point`, or `NoisedPoint` of forward.py


@dataclass(frozen=True)
class Rollout(Generic[P]):
    """P groups of G images, group by group (B = P G), and what is trained of them."""

    images: Tensor  # [B, 3, H, W] in [0, 1], on the CPU
    condition: Condition  # of the B images
    trajectory: tuple[P, ...]  # by ascending step


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2^63) from what identifies an image (run, epoch, sample, member), not from rank or batch."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def _gaussian(like: Tensor, generators: Sequence[torch.Generator], noisy: Tensor | None) -> Tensor:
    """Noise in the shape of `like` [B, ...], drawn on the CPU with one generator per image.

    noisy  [B]: other images get zeros and their generators stay as they are, so that no image depends on another's
           steps
    """
    wanted = [True] * len(generators) if noisy is None else noisy.tolist()
    drawn = [
        torch.randn(like.shape[1:], generator=generator) if wants else torch.zeros(like.shape[1:])
        for wants, generator in zip(wanted, generators, strict=True)
    ]
    return torch.stack(drawn).to(like)


def denoise(
    policy: Policy,
    latents: Tensor,
    condition: Condition,
    sigmas: Tensor,
    steps: range,
    count: int | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Take the deterministic steps `steps` on the grid; returns the latents after the last one.

    count  take so many steps of second order instead, where that is fewer; None: Euler's
    watch  called at each of Euler's steps
    """
    if count is not None and count < len(steps):
        return _denoise_coarsely(policy, latents, condition, sigmas, coarse_steps(steps.start, steps.stop, count))
    for step in steps:
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        velocity = policy.velocity(latents, sigma, condition)
        if watch is not None:
            watch(step_distribution("ode", latents, velocity, sigma, 0.0, 0.0, sigmas[1])[0])
        latents, _ = step_distribution("ode", latents, velocity, sigma, sigma_next, 0.0, sigmas[1])
    return latents


def _denoise_coarsely(
    policy: Policy, latents: Tensor, condition: Condition, sigmas: Tensor, indices: Sequence[int]
) -> Tensor:
    """From grid index to grid index in steps of second order."""
    before = None
    for index, next_index in pairwise(indices):
        sigma, sigma_next = sigmas[index].item(), sigmas[next_index].item()
        velocity = policy.velocity(latents, sigma, condition)
        latents, clean = multistep(latents, velocity, sigma, sigma_next, before)
        before = sigma, clean
    return latents


@torch.no_grad()
def generate(
    policy: Policy, condition: Condition, sigmas: Tensor, seeds: Sequence[int], watch: Watch | None = None
) -> Tensor:
    """Images [N, 3, H, W] in [0, 1] without stochastic steps, as users sample them; one seed per image."""
    steps = range(len(sigmas) - 1)
    latents = denoise(policy, policy.noise(condition, seeds), condition, sigmas, steps, watch=watch)
    return policy.decode(latents, condition)


@dataclass(frozen=True)
class Sampler:
    """Samples groups, and replays their stochastic steps."""

    sigmas: Tensor  # [T + 1]
    dynamics: Dynamics  # of the stochastic steps
    noise_level: float
    batch: int  # images per forward pass
    noise_everywhere: bool = False  # noise at every step but the last, whichever are trained
    keep_means: bool = False  # for trust regions that measure how far the mean has moved
    finish_steps: int | None = None  # steps of second order after the last noisy one, and before the first

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
    ) -> Rollout[Point]:
        """`size` images for each entry of `condition`, with the transitions of `steps` (true indices, ascending).

        Each image takes noise at the steps that it trains, or at all but the last (`noise_everywhere`); the others are
        ODE steps.

        trained  [B, len(steps)]: which of the steps each image trains; None: all of them
        seed_of(group, member)  seed of an image's noise; member None: of the noise that the group starts from
        ready(images, part)     called with each batch of finished images, and their slice among the B images
        """
        total = len(self.sigmas) - 1
        noisy: dict[int, Tensor | None] = dict.fromkeys(range(total - 1) if self.noise_everywhere else steps)
        if trained is not None and not self.noise_everywhere:
            noisy = dict(zip(steps, trained.unbind(dim=1), strict=True))
        first, last = min(noisy), max(noisy)
        noise = policy.noise(condition, [seed_of(group, None) for group in range(len(condition))])
        prefixes = [
            denoise(policy, noise[part], condition[part], self.sigmas, range(first), self.finish_steps)
            for part in parts_of(len(condition), self.batch)
        ]
        latents = torch.cat(prefixes).repeat_interleave(size, dim=0)
        members = condition.repeat(size)
        generators = [
            torch.Generator().manual_seed(seed_of(group, member))
            for group in range(len(condition))
            for member in range(size)
        ]
        images, points = [], []
        for part in parts_of(len(members), self.batch):
            own = {step: None if images is None else images[part] for step, images in noisy.items()}
            x, transitions = self._stochastic(policy, latents[part], members[part], own, generators[part], steps)
            x = denoise(policy, x, members[part], self.sigmas, range(last + 1, total), self.finish_steps)
            images.append(policy.decode(x, members[part]).cpu())  # the update needs the device's memory
            ready(images[-1], part)
            points.append(transitions)
        trajectory = tuple(_join(batches) for batches in zip(*points, strict=True))
        return Rollout(torch.cat(images), members, trajectory)

    def _stochastic(
        self,
        policy: Policy,
        latents: Tensor,
        condition: Condition,
        noisy: Mapping[int, Tensor | None],
        generators: Sequence[torch.Generator],
        kept: Sequence[int],
    ) -> tuple[Tensor, list[Point]]:
        """From the first to the last stochastic step: the latents after it, and the transitions of the steps `kept`.

        noisy  which images take noise at each stochastic step (None: all); the others share its forward pass and take
               an ODE step
        """
        points = []
        for step in range(min(noisy), max(noisy) + 1):
            if step not in noisy:
                latents = denoise(policy, latents, condition, self.sigmas, range(step, step + 1))
                continue
            sigma, sigma_next, chosen = self.sigmas[step].item(), self.sigmas[step + 1].item(), noisy[step]
            velocity = policy.velocity(latents, sigma, condition)
            mean, std = self.step(latents, velocity, sigma, sigma_next)
            sample = mean + std * _gaussian(mean, generators, chosen)
            if chosen is not None:
                chosen = chosen.to(sample.device)
                plain, _ = self.step(latents, velocity, sigma, sigma_next, "ode")
                sample = torch.where(chosen.view(-1, *[1] * (sample.dim() - 1)), sample, plain)
            if step in kept:
                means = mean if self.keep_means else None
                density = log_prob(sample, mean, std)
                points.append(Point(step, sigma, sigma_next, latents, sample, density, chosen, means))
            latents = sample
        return latents, points

    def replay(self, policy: Policy, rollout: Rollout[Any], point: Point, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of a stored transition of some images under the current policy."""
        condition = rollout.condition[images]
        return self.distribution(policy, point.latents[images], condition, point.sigma, point.sigma_next)

    def worst_changes(self, policy: Policy, rollout: Rollout[Point], images: Tensor) -> Tensor:
        """Largest difference between replayed and stored log-probabilities of these images, at each step [T].

        NaN if one is NaN, 0 if none of them took noise at the step.
        """
        changes = []
        for point in rollout.trajectory:
            existing = images[images < len(point.latents)]
            replayed = log_prob(point.next_latents[existing], *self.replay(policy, rollout, point, existing))
            change = (replayed - point.log_prob[existing]).detach().abs()
            if point.noisy is not None:
                change = change.where(point.noisy[existing], 0.0)
            changes.append(change.max().cpu().double())  # not every device has float64
        return torch.stack(changes)

    def distribution(
        self, policy: Policy, latents: Tensor, condition: Condition, sigma: float, sigma_next: float
    ) -> tuple[Tensor, Tensor]:
        """Mean and std of a step under `policy`."""
        return self.step(latents, policy.velocity(latents, sigma, condition), sigma, sigma_next)

    def step(
        self,
        latents: Tensor,
        velocity: Tensor,
        sigma: float | Tensor,
        sigma_next: float | Tensor,
        dynamics: Dynamics | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean and std of a step with this velocity; sampling and replaying both use this.

        dynamics  None: the stochastic steps'
        """
        of = dynamics or self.dynamics
        return step_distribution(of, latents, velocity, sigma, sigma_next, self.noise_level, self.sigmas[1])


def parts_of(total: int, size: int) -> list[slice]:
    """Slices of at most `size` that together cover `total`, the remainder included."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _join(batches: Sequence[Point]) -> Point:
    """The same transition of several batches as one."""
    first = batches[0]
    tensors = {
        name: torch.cat([getattr(point, name) for point in batches])
        for name in ("latents", "next_latents", "log_prob", "noisy", "mean")
        if getattr(first, name) is not None
    }
    return Point(first.step, first.sigma, first.sigma_next, **tensors)
