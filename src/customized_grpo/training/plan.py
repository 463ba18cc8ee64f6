"""What an update does, as pure functions of its number: which samples, which steps, which weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from customized_grpo.algorithm import (
    SHAPING_RULES,
    ConstantWeights,
    TimeAwareWeights,
    step_advantages,
    step_gradient_factor,
    step_progress,
    step_scales,
    stochastic_steps,
)
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.fields import BUILT_IN
from customized_grpo.sections import Shaping, Weighting
from customized_grpo.training.rollout import derive_seed


class Plan:
    """The plan of a run on the grid `sigmas` [T + 1]; nothing in it depends on what training did so far."""

    def __init__(self, config: RunConfig, samples: Sequence[Sample], sigmas: Tensor):
        self.config, self.samples, self.sigmas = config, samples, sigmas
        self.roles = {key: str(reward.role) for key, reward in config.rewards.items()}
        weighting = config.weighting
        self.weights = (
            ConstantWeights(weighting.prompt)
            if weighting.kind == "constant"
            else TimeAwareWeights(**weighting.model_dump(exclude={"kind", "prompt", "progress"}))
        )

    @property
    def _weighted(self) -> bool:
        return SHAPING_RULES[self.config.shaping.rule].uses_weights

    def batch(self, update: int) -> list[Sample]:
        """The samples of an update; every epoch is another permutation, and no sample is dropped at its end."""
        count = self.config.groups.prompts
        return [self._shown(update, group)[1] for group in range(count)]

    def _shown(self, update: int, group: int) -> tuple[int, Sample]:
        """Epoch and sample of a group."""
        epoch, index = divmod(update * self.config.groups.prompts + group, len(self.samples))
        order = torch.randperm(len(self.samples), generator=self._generator("epoch", epoch))
        return epoch, self.samples[int(order[index])]

    def window(self, update: int) -> tuple[int, ...]:
        """The stochastic, trained steps of an update, ascending."""
        window = self.config.window
        return stochastic_steps(
            window.strategy,
            self.config.sampling.num_steps,
            window.size,
            first=window.first,
            last=window.last,
            start=window.start,
            iteration=update,
            every=window.every,
            stride=window.stride,
            generator=self._generator("window", update),
        )

    def prompt_weight(self, steps: Sequence[int]) -> Tensor:
        """Weight of the prompt's reward at each step [len(steps)]; the identity's is the rest."""
        progress = step_progress(steps, self.sigmas, self.config.weighting.progress)
        return self.weights.prompt_weight(progress)

    def advantages(self, scores: Mapping[str, Tensor], prompt_weight: Tensor) -> Tensor:
        """Shaped advantages [P, G, T] of rewards [P, G] by key, at steps with these prompt weights [T]."""
        shaping, rewards = self.config.shaping, self.config.rewards
        quality = {key: reward.weight for key, reward in rewards.items() if reward.weight is not None}
        return step_advantages(
            shaping.rule,
            scores,
            prompt_weight,
            roles=self.roles,
            quality_weights=quality,
            gamma=shaping.gamma,
            recentre=shaping.recentre,
            scale=shaping.scale,
            clip=shaping.clip,
        )

    @property
    def _reachable(self) -> range:
        """The steps that some window holds."""
        window = self.config.window
        if window.start is not None and window.size is not None:
            return range(window.start, window.start + window.size)
        return range(window.first, len(self.sigmas) - 2 if window.last is None else window.last + 1)

    def scales(self, steps: Sequence[int]) -> Tensor:
        """`step_scale` of each step [len(steps)], comparable between windows."""
        noise, kind = self.config.noise, self.config.objective.step_scale
        return step_scales(kind, noise.dynamics, self.sigmas, steps, noise.level, over=self._reachable)

    def pull(self, steps: Sequence[int]) -> Tensor:
        """How strongly each step's loss pulls on the velocity: `step_scale` times |d mean / d velocity| / std."""
        at, noise = torch.tensor(list(steps)), self.config.noise
        sigma, sigma_next = self.sigmas[at], self.sigmas[at + 1]
        return self.scales(steps) * step_gradient_factor(
            noise.dynamics, sigma, sigma_next, noise.level, self.sigmas[1]
        )

    def step_rows(self, steps: Sequence[int]) -> list[dict[str, float]]:
        """What is written down of each trained step: its pull, and where the rule has weights how they divide it."""
        rows = []
        weights, pulls = self.prompt_weight(steps).tolist(), self.pull(steps).tolist()
        for step, weight, pull in zip(steps, weights, pulls, strict=True):
            divided = {"prompt_weight": weight, "prompt_pull": weight * pull, "identity_pull": (1 - weight) * pull}
            rows.append({"step": step, "pull": pull, **(divided if self._weighted else {})})
        return rows

    def seed(self, update: int, group: int, member: int | None) -> int:
        """Seed of one image of a group; member None: of the noise that the group starts from.

        By epoch, in which a sample has one group, and not by update, in which a short list shows it several times.
        """
        epoch, sample = self._shown(update, group)
        return derive_seed(self.config.seed, epoch, sample.id, member)

    def lr(self, optimizer_step: int) -> float:
        """Linear warm-up over the first updates, then constant."""
        warmup = self.config.optimizer.warmup * self.config.objective.updates_per_rollout
        return self.config.optimizer.lr * min((optimizer_step + 1) / max(warmup, 1), 1)

    def notices(self) -> list[str]:
        """What a user should know before the run starts, one sentence each."""
        notices = list(self._unread())
        if self._weighted and isinstance(self.weights, TimeAwareWeights):
            progress = step_progress(self._reachable, self.sigmas, self.config.weighting.progress)
            if not self.weights.in_final_phase(progress).any():
                notices.append(
                    f"with {self.config.sampling.num_steps} steps no trained step reaches the final phase of the "
                    f"time-aware weights (progress {self.weights.end} and later), the last is step "
                    f"{self._reachable[-1]}; our experiments do without it, to have it sample in more steps or lower "
                    "weighting.end"
                )
        if self.config.model.path == BUILT_IN != self.config.data.source:
            notices.append(
                "the built-in model has seen nothing but critters: with other data a run shows that everything works, "
                "and its pictures mean nothing"
            )
        if len({sample.subject for sample in self.samples}) == 1:
            notices.append("all training samples show one subject: the adapter will overfit to it")
        return notices

    def _unread(self) -> Iterator[str]:
        """Settings that this run's rule has no use for; a sweep over rules may well leave them as they are."""
        shaping, usual = self.config.shaping, Shaping()
        if not self._weighted and self.config.weighting != Weighting(kind="constant"):
            yield f'the rule "{shaping.rule}" has no weights: the section `weighting` changes nothing'
        for name in ("gamma", "recentre"):
            if not SHAPING_RULES[shaping.rule].uses_bonus and getattr(shaping, name) != getattr(usual, name):
                yield f'the rule "{shaping.rule}" has no bonus: shaping.{name} changes nothing'

    def _generator(self, *parts: object) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.config.seed, *parts))
