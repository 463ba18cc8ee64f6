"""How many images go through the model in an update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.training.plan import Plan

AVERAGED = 1000  # updates, if a run has more: windows are drawn at random


@dataclass(frozen=True)
class Passes:
    """Images times denoising steps, on average over the updates of a run.

    shared      without gradient: steps that the images of a group have in common, once per group
    own         without gradient: the other steps of the rollout
    extra       without gradient: the model without the adapter, for KL; the policy that sampled, for `nft`
    trained     forward and backward. Images without a score or without signal are left out in a run, but not here
    evaluation  without gradient: those of all evaluations, divided by the number of updates
    images      finished images of the rollout
    evaluated   finished images of evaluations
    """

    shared: float
    own: float
    extra: float
    trained: float
    evaluation: float
    images: float
    evaluated: float

    @property
    def sampled(self) -> float:
        return self.shared + self.own

    def __truediv__(self, processes: int) -> Passes:
        return Passes(**{name: value / processes for name, value in vars(self).items()})


def passes(config: RunConfig, updates: Sequence[int] | None = None) -> Passes:
    """The passes of all processes together in an update, on average over these updates.

    updates  None: those of the run
    """
    groups, steps, nft = config.groups.prompts, config.sampling.num_steps, config.objective.kind == "nft"
    images = groups * config.groups.size
    plan = Plan(config, [blank_sample()], torch.linspace(1, 0, steps + 1))
    windows = [plan.window(update) for update in updates or range(min(config.updates, AVERAGED))]
    shared, own = zip(*(_rollout(config, window) for window in windows), strict=True)
    entries = images * (config.window.size or steps - 1)
    trained = entries * config.objective.updates_per_rollout
    evaluated = config.data.held_out_samples * evaluations(config) / config.updates
    return Passes(
        shared=groups * sum(shared) / len(shared),
        own=images * sum(own) / len(own),
        extra=(entries if nft else 0) + (trained if config.objective.kl > 0 else 0),
        trained=trained,
        evaluation=evaluated * config.evaluation_steps,
        images=images,
        evaluated=evaluated,
    )


def evaluations(config: RunConfig) -> int:
    """How often a run generates its held-out cases: before the first update, and then every so many.

    Twice each time if the adapter has a moving average, which is evaluated, too.
    """
    every = config.evaluation.every
    times = 1 + config.updates // every if every else 0
    return times if config.adapter.ema.decay is None else 2 * times


def _rollout(config: RunConfig, window: tuple[int, ...]) -> tuple[int, int]:
    """Forward passes of a group as a whole, and of each of its images, if these steps are trained."""
    steps, few = config.sampling.num_steps, config.sampling.finish_steps or config.sampling.num_steps
    if config.objective.kind == "nft":
        return 0, min(steps, few)
    first, last = (0, steps - 2) if config.noise.steps == "all" else (min(window), max(window))
    return min(first, few), last + 1 - first + min(steps - 1 - last, few)


def blank_sample(references: int = 1) -> Sample:
    """A sample with square references, larger than any family takes them."""
    return Sample("blank", "blank", "", (Image.new("RGB", (1024, 1024)),) * references)
