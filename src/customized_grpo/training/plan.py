"""What each update does, as pure functions of its number: which samples, which steps, which weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from customized_grpo.algorithm import (
    ConstantWeights,
    TimeAwareWeights,
    nft_pull,
    nft_scales,
    progress,
    scattered_steps,
    step_distribution,
    step_gradient_factor,
    step_progress,
    step_scales,
    stochastic_steps,
)
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.training.rollout import derive_seed
from customized_grpo.training.rules import rule_of
from customized_grpo.training.windows import DrawnSteps


class Plan:
    """The plan of a run on the grid `sigmas` [T + 1]. It depends on nothing that training has done so far."""

    def __init__(self, config: RunConfig, samples: Sequence[Sample], sigmas: Tensor):
        self.config, self.samples, self.sigmas, self.rule = config, samples, sigmas, rule_of(config)
        self._orders: dict[int, Tensor] = {}  # permutations of the latest epochs
        self.roles = {key: str(reward.role) for key, reward in config.rewards.items()}
        weighting = config.weighting
        self.weights = (
            ConstantWeights(weighting.prompt)
            if weighting.kind == "constant"
            else TimeAwareWeights(**weighting.model_dump(exclude={"kind", "prompt", "progress", "balance"}))
        )

    @property
    def weighted(self) -> bool:
        return self.rule.uses_weights

    def batch(self, update: int) -> list[Sample]:
        """The samples of an update. Every epoch is a new permutation; a batch may continue into the next epoch."""
        return [self._place(update, group)[1] for group in range(self.config.groups.prompts)]

    def _place(self, update: int, group: int) -> tuple[int, Sample]:
        """Epoch and sample of a group."""
        epoch, index = divmod(update * self.config.groups.prompts + group, len(self.samples))
        if epoch not in self._orders:  # asked for every image of an update; two epochs are enough for a long list
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = torch.randperm(len(self.samples), generator=self._generator("epoch", epoch))
        return epoch, self.samples[int(self._orders[epoch][index])]

    def window(self, update: int) -> tuple[int, ...]:
        """The true indices, ascending, of the T steps that an update trains: all its images, or some (`trained`)."""
        drawn, window = self._drawn(update), self.config.window
        if drawn is not None:
            return drawn.steps
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

    def trained(self, update: int) -> Tensor | None:
        """Which steps of the window each image of an update trains, [P G, T]; None: every image trains all of them."""
        drawn = self._drawn(update)
        return None if drawn is None else drawn.trained

    def _drawn(self, update: int) -> DrawnSteps | None:
        """The steps that each image of an update draws for itself, if it does."""
        window, groups = self.config.window, self.config.groups
        if window.strategy != "scattered" or window.per != "image" or window.size is None:
            return None
        orders = []
        for group in range(groups.prompts):
            epoch, sample = self._place(update, group)
            for member in range(groups.size):
                generator = self._generator("steps", epoch, sample.id, member)  # not the noise's: that stays the same
                orders.append(
                    scattered_steps(
                        self.config.sampling.num_steps,
                        window.size,
                        first=window.first,
                        last=window.last,
                        generator=generator,
                    )
                )
        return DrawnSteps(torch.tensor(orders))

    def times_trained(self) -> Tensor:
        """How often the run trains each step, [num_steps - 1]: images, or updates if all images share their steps."""
        times = torch.zeros(len(self.sigmas) - 2, dtype=torch.float64)
        for update in range(self.config.updates):
            trained = self.trained(update)
            times[list(self.window(update))] += 1 if trained is None else trained.sum(dim=0)
        return times

    def prompt_weight(self, steps: Sequence[int]) -> Tensor:
        """Weight of the prompt rewards at each step [len(steps)]; identity gets the rest.

        With the weights of the authors' release (`position`), every step has their mean.
        """
        reading = self.config.weighting.progress
        if reading == "position":
            return self.weights_by_position().mean().expand(len(steps))
        return self.weights.prompt_weight(step_progress(steps, self.sigmas, reading))

    def weights_by_position(self) -> Tensor:
        """Weight of the prompt rewards at each position [size] in the order in which an image drew its steps.

        The release of arXiv 2510.18263 reads its table at the position in its loop, u = j / T, although the steps of
        that loop have been permuted for each image. So a step has a random one of these weights.
        """
        positions = torch.arange(self.config.window.size or 1)
        return self.weights.prompt_weight(progress(positions, self.config.sampling.num_steps))

    def column_weight(self, window: Sequence[int]) -> Tensor:
        """Weight of the prompt rewards in each column of the advantages that `at_trained_steps` takes, [C].

        Columns are the steps of the window, or with `position` the places in the order of drawing.
        """
        if self.config.weighting.progress == "position":
            return self.weights_by_position()
        return self.prompt_weight(window)

    def at_trained_steps(self, update: int, advantages: Tensor) -> Tensor:
        """Advantages [P G, T] at the steps of the window; NaN for an image that does not train the step.

        advantages  [P, G, C] of all processes with the weights of `column_weight`
        """
        drawn, advantages = self._drawn(update), advantages.flatten(0, 1)
        if drawn is None:
            return advantages
        if self.config.weighting.progress == "position":
            return drawn.by_step(advantages)
        return advantages.masked_fill(~drawn.trained.to(advantages.device), torch.nan)

    @property
    def reachable(self) -> range:
        """All steps that some window of the run can contain."""
        window = self.config.window
        if window.start is not None and window.size is not None:
            return range(window.start, window.start + window.size)
        return range(window.first, len(self.sigmas) - 2 if window.last is None else window.last + 1)

    def scales(self, steps: Sequence[int]) -> Tensor:
        """The factor `step_scale` on each step's log-ratio [len(steps)], comparable between windows; with `nft` on its
        loss."""
        noise, kind = self.config.noise, self.config.objective.step_scale
        if self.config.objective.kind == "nft":
            return nft_scales(kind, self.sigmas, steps, over=self.reachable)
        return step_scales(kind, noise.dynamics, self.sigmas, steps, noise.level, over=self.reachable)

    def pull(self, steps: Sequence[int]) -> Tensor:
        """How strongly each step's loss pulls on the velocity: the ratio's scale times |d mean / d velocity| / std.

        With `nft` it is the loss's scale times sigma^2.
        """
        at, noise = torch.tensor(list(steps)), self.config.noise
        if self.config.objective.kind == "nft":
            return self.scales(steps) * nft_pull(self.sigmas[at])
        sigma, sigma_next = self.sigmas[at], self.sigmas[at + 1]
        return self.ratio_scales(steps) * step_gradient_factor(
            noise.dynamics, sigma, sigma_next, noise.level, self.sigmas[1]
        )

    def ratio_scales(self, steps: Sequence[int]) -> Tensor:
        """The factor on each step's log-ratio [len(steps)]: `step_scale`, or the step's std with "guard"."""
        if self.config.objective.trust != "guard":
            return self.scales(steps)
        at, noise = torch.tensor(list(steps)), self.config.noise
        nothing = torch.zeros(len(at), 1, dtype=torch.float64)
        sigma, sigma_next = self.sigmas[at], self.sigmas[at + 1]
        step = step_distribution(noise.dynamics, nothing, nothing, sigma, sigma_next, noise.level, self.sigmas[1])
        return step[1].flatten()

    def ratio_limits(self, steps: Sequence[int]) -> Tensor:
        """The change of a log-probability that would fill half a clip range at each step [len(steps)]."""
        if self.config.objective.trust == "dppo":  # it clips no ratio
            return torch.full((len(steps),), torch.inf, dtype=torch.float64)
        return self.config.objective.clip_range / 2 / self.ratio_scales(steps)

    def step_rows(self, steps: Sequence[int], prompt_weight: Tensor) -> list[dict[str, float]]:
        """For metrics.jsonl, one row per trained step: its pull, and how the weights divide it if the rule has any."""
        rows = []
        for step, weight, pull in zip(steps, prompt_weight.tolist(), self.pull(steps).tolist(), strict=True):
            parts = {"prompt_weight": weight, "prompt_pull": weight * pull, "identity_pull": (1 - weight) * pull}
            rows.append({"step": step, "pull": pull, **(parts if self.weighted else {})})
        return rows

    def seed(self, update: int, group: int, member: int | None) -> int:
        """Seed of one image of a group; member None: of the noise that the group starts from.

        It depends on the epoch, in which each sample has exactly one group, and not on the update, in which a sample
        of a short list may have several.
        """
        epoch, sample = self._place(update, group)
        return derive_seed(self.config.seed, epoch, sample.id, member)

    def lr(self, optimizer_step: int) -> float:
        """The learning rate of an optimiser step: linear warm-up over the first updates, then constant."""
        warmup = self.config.optimizer.warmup * self.steps_per_rollout
        return self.config.optimizer.lr * min((optimizer_step + 1) / max(warmup, 1), 1)

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps on one rollout, if no minibatch is without signal."""
        return self.config.objective.updates_per_rollout * self.config.objective.minibatches

    def _generator(self, *parts: object) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.config.seed, *parts))
