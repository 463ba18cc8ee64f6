"""The effect of noise at a single denoising step, measured step by step.

For each step that can be stochastic (0 to T - 2): the deterministic steps before it, shared by all draws of a prompt;
noise at that step only, as training would draw it; deterministic steps after it. The spread of a reward within a
prompt is how much that step decides of it. A second measurement is how strongly the step pulls on the update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from customized_grpo.algorithm import log_prob
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.policies.base import Condition, Policy
from customized_grpo.rewards import Reward
from customized_grpo.rewards.scoring import score
from customized_grpo.training.rollout import Point, Sampler, denoise, derive_seed

GRADIENT_PROMPTS = 8  # each takes one backward pass per step
REWARDS = ("identity_reward", "prompt_reward")  # a probe is useless without their scores


@dataclass(frozen=True)
class Profile:
    """The effect of noise at each of N = T - 1 steps; the first index of every tensor is the step.

    spreads          [N, P] per metric: standard deviation over a prompt's draws (n - 1 in the denominator), in the
                     metric's own unit; NaN for fewer than two scored draws
    gradient_norms   [N, M]: norm of d log_prob / d adapter, for one draw of each of M prompts
    """

    spreads: dict[str, Tensor]
    gradient_norms: Tensor


@dataclass(frozen=True)
class Probe:
    """P samples, G draws each; an image's noise depends on (seed, sample, step, draw) alone, not on the batch."""

    policy: Policy
    sampler: Sampler
    samples: Sequence[Sample]
    metrics: Mapping[str, Reward]
    draws: int
    seed: int

    @property
    def last(self) -> int:
        """The last step, T - 1, which is always deterministic."""
        return len(self.sampler.sigmas) - 2

    def measure(self) -> Profile:
        """Probe every step, with a progress bar that counts the draws' forward passes.

        Raises UsageError, at the first such step, if a trained reward cannot score two draws of any prompt.
        """
        condition = self.policy.encode(self.samples)
        latents = self.policy.noise(condition, [self.seed_of(sample) for sample in self.samples])
        spreads: dict[str, list[Tensor]] = {name: [] for name in self.metrics}
        norms = []
        passes = len(self.samples) * self.draws * self.last * (self.last + 1) // 2
        with tqdm(total=passes, desc="probing", unit=" passes") as bar:
            for step in range(self.last):
                point = self._noisy_step(latents, condition, step)
                scores = self._scores(point, condition, bar)
                for name, values in scores.items():
                    spreads[name].append(spread_within(values))
                    if name in REWARDS and spreads[name][-1].isnan().all():
                        raise UsageError(
                            f"the {name.replace('_', ' ')} cannot score these samples; choose another reward"
                        )
                latest = {name: rows[-1].nanmean() for name, rows in list(spreads.items())[:2]}
                bar.set_postfix({f"{name} spread": f"{spread:.3f}" for name, spread in latest.items()})
                norms.append(self._gradient_norms(point, condition))
                latents = self._deterministic_step(latents, condition, step)
        return Profile({name: torch.stack(rows) for name, rows in spreads.items()}, torch.stack(norms))

    def seed_of(self, sample: Sample, step: int | None = None, draw: int | None = None) -> int:
        """Seed of the noise at a step; without a step, of the prompt's initial noise."""
        return derive_seed("probe", self.seed, sample.id, step, draw)

    @torch.no_grad()
    def _noisy_step(self, latents: Tensor, condition: Condition, step: int) -> Point:
        """The P G transitions of one step, prompt by prompt; all draws of a prompt share one distribution."""
        sigma, sigma_next = self.sampler.sigmas[step].item(), self.sampler.sigmas[step + 1].item()
        means, std = [], torch.empty(())
        for part in self._parts(len(latents)):
            mean, std = self.sampler.distribution(self.policy, latents[part], condition[part], sigma, sigma_next)
            means.append(mean)
        mean = torch.cat(means).repeat_interleave(self.draws, dim=0)
        noise = torch.stack(
            [
                torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(self.seed_of(sample, step, draw)))
                for sample in self.samples
                for draw in range(self.draws)
            ]
        )
        sample = mean + std * noise.to(mean)
        start = latents.repeat_interleave(self.draws, dim=0)
        return Point(step, sigma, sigma_next, start, sample, log_prob(sample, mean, std))

    @torch.no_grad()
    def _scores(self, point: Point, condition: Condition, bar: tqdm) -> dict[str, Tensor]:
        """Every metric's scores [P, G] of the images that deterministic steps make of one step's draws."""
        members = condition.repeat(self.draws)
        owners = [sample for sample in self.samples for _ in range(self.draws)]
        scores: dict[str, list[Tensor]] = {name: [] for name in self.metrics}
        for part in self._parts(len(members)):
            steps = range(point.step + 1, self.last + 1)
            end = denoise(self.policy, point.next_latents[part], members[part], self.sampler.sigmas, steps)
            images = self.policy.decode(end, members[part])
            batch = [owners[index] for index in part.tolist()]
            for name, metric in self.metrics.items():
                scores[name].append(score(name, metric, images, batch))
            bar.update(len(part) * len(steps))
        return {name: torch.cat(rows).reshape(len(self.samples), self.draws) for name, rows in scores.items()}

    def _gradient_norms(self, point: Point, condition: Condition) -> Tensor:
        """Norm of d log_prob / d adapter [M] for the first draw of the first M prompts, one image at a time."""
        parameters = list(self.policy.trainable_parameters().values())
        norms = []
        for prompt in range(min(GRADIENT_PROMPTS, len(self.samples))):
            image, owner = (slice(index, index + 1) for index in (prompt * self.draws, prompt))
            mean, std = self.sampler.distribution(
                self.policy, point.latents[image], condition[owner], point.sigma, point.sigma_next
            )
            density = log_prob(point.next_latents[image], mean, std)
            gradients = torch.autograd.grad(density.sum(), parameters, materialize_grads=True)
            norms.append(torch.stack([gradient.cpu().double().norm() for gradient in gradients]).norm())
        return torch.stack(norms)

    @torch.no_grad()
    def _deterministic_step(self, latents: Tensor, condition: Condition, step: int) -> Tensor:
        """Extend the shared prefix by one step."""
        parts = [
            denoise(self.policy, latents[part], condition[part], self.sampler.sigmas, range(step, step + 1))
            for part in self._parts(len(latents))
        ]
        return torch.cat(parts)

    def _parts(self, count: int) -> Sequence[Tensor]:
        return torch.arange(count).split(self.sampler.batch)


def spread_within(scores: Tensor) -> Tensor:
    """Standard deviation (n - 1) of each row of scores [P, G]; unscored draws are skipped, NaN for fewer than two."""
    scores = scores.double()
    scored = ~scores.isnan()
    count = scored.sum(dim=1)
    deviation = torch.where(scored, scores - scores.nanmean(dim=1, keepdim=True), 0.0)
    spread = (deviation.square().sum(dim=1) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(count > 1, spread, torch.nan)
