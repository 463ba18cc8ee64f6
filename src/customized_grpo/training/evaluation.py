"""Evaluation during training: fixed held-out cases with fixed seeds, sampled as for a user, scored by all metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from customized_grpo.algorithm import Calibration
from customized_grpo.calibration.joint import joint_quality
from customized_grpo.config import JOINT_CALIBRATED, RunConfig
from customized_grpo.data import Sample
from customized_grpo.data.images import to_pictures
from customized_grpo.errors import first_line
from customized_grpo.files.pictures import Shown
from customized_grpo.policies.base import Policy
from customized_grpo.policies.shadow import Shadow
from customized_grpo.rewards import Reward
from customized_grpo.rewards.scoring import Reasons, score
from customized_grpo.runtime.distributed import Processes
from customized_grpo.runtime.memory import MemoryExhaustedError
from customized_grpo.training.record import spread, with_average
from customized_grpo.training.rollout import derive_seed, generate
from customized_grpo.wording import counted


@dataclass(frozen=True)
class Scored:
    """Scores [N] of N cases by metric, NaN if unscored, and images [M, 3, H, W] in [0, 1] of the first M cases."""

    images: Tensor
    scores: dict[str, Tensor]

    def shown(self, samples: Sequence[Sample], count: int) -> list[Shown]:
        """The first `count` cases, for the picture sheet."""
        pictures = to_pictures(self.images[:count])
        return [
            Shown(
                sample.id,
                sample.subject,
                sample.prompt,
                sample.reference_images()[0],
                picture,
                {name: values[number].item() for name, values in self.scores.items()},
            )
            for number, (sample, picture) in enumerate(zip(samples, pictures, strict=False))
        ]


def evaluation_sigmas(policy: Policy, config: RunConfig) -> Tensor:
    """The noise grid of evaluations. Raises UsageError if the model cannot take their size or schedule."""
    with policy.sized(*config.evaluation_size):
        return policy.sigmas(config.evaluation_steps, config.sampling.shift)


Case = tuple[Sample, int]  # a sample and which of its images


def case_seed(sample: Sample, index: int = 0) -> int:
    """The seed of a case in every evaluation."""
    return derive_seed("case", sample.id, index)


def generate_cases(policy: Policy, sigmas: Tensor, cases: Sequence[Case]) -> Tensor:
    """One image per case, all in one batch: [N, 3, H, W] in [0, 1]. Seeds depend on sample id and index alone."""
    seeds = [case_seed(sample, index) for sample, index in cases]
    return generate(policy, policy.encode([sample for sample, _ in cases]), sigmas, seeds).cpu()


@dataclass(frozen=True)
class HeldOut:
    """The cases of a run's evaluations, and what they are scored with."""

    samples: Sequence[Sample]
    metrics: Mapping[str, Reward]  # rewards as "<key>_reward", and the metrics of `evaluation.metrics` by name
    batch: int  # images per forward pass
    processes: Processes
    size: tuple[int, int]  # height and width of the pictures, in pixels
    roles: Mapping[str, str] = field(default_factory=dict)  # of the rewards by key
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)  # of identity and prompt, if the run has any
    _reasons: Reasons = field(default_factory=Reasons, init=False, repr=False, compare=False)

    def evaluate(
        self, policy: Policy, sigmas: Tensor, label: str | None = None, *, shown: int | None = None
    ) -> Scored:
        """Generate and score all cases, divided among the processes.

        label  of the progress bar; None: no bar
        shown  number of cases whose images every process gets (None: all); every process gets all scores

        Raises MemoryExhaustedError if not even smaller batches fit.
        """
        total, part = len(self.samples), self.processes.share(len(self.samples))
        count = part.stop - part.start
        samples = self.samples[part] if count else self.samples[:1]  # with no share, one case for its shapes
        cases = [(sample, 0) for sample in samples]
        starts = tqdm(range(0, len(cases), self.batch), desc=label, disable=label is None, leave=False)
        with policy.sized(*self.size):
            parts = [self._generate(policy, sigmas, cases[start : start + self.batch]) for start in starts]
        images = torch.cat(parts)
        scores = {name: score(name, metric, images, samples) for name, metric in self.metrics.items()}
        for name, values in scores.items():
            if values.isnan().any():
                self._reasons.tell(name, self.metrics[name])
        gathered = {name: self.processes.gather(values[:count], total) for name, values in scores.items()}
        return Scored(self.processes.first(images, total, total if shown is None else shown), gathered)

    def _generate(self, policy: Policy, sigmas: Tensor, cases: Sequence[Case]) -> Tensor:
        """`generate_cases`, in halves if memory runs out. Not with several processes: they would be out of step."""
        try:
            return generate_cases(policy, sigmas, cases)
        except torch.OutOfMemoryError as error:
            if len(cases) == 1 or self.processes.count > 1:
                raise MemoryExhaustedError(
                    f"out of memory while evaluating {counted(len(cases), 'image')} at a time ({first_line(error)}); "
                    "continue with --resume, groups.batch=null and a smaller groups.rollout_batch, or with a smaller "
                    "evaluation.height and width"
                ) from None
        middle = len(cases) // 2  # outside of `except`, which would keep the failed attempt's tensors alive
        return torch.cat([self._generate(policy, sigmas, half) for half in (cases[:middle], cases[middle:])])

    def report(
        self, policy: Policy, sigmas: Tensor, *, grid: int, average: Shadow | None = None
    ) -> tuple[dict[str, Any], list[Shown]]:
        """Mean, standard deviation and count of every metric's scores, and the first `grid` cases.

        A run that has calibrations also gets the figure `joint_calibrated`, from the scores of its rewards. A run that
        keeps an average of its adapter also gets the figures of the average.
        """
        figures, shown = self._figures(policy, sigmas, grid)
        if average is None:
            return figures, shown
        with average.in_place():
            return with_average(figures, self._figures(policy, sigmas, 0)[0]), shown

    def _figures(self, policy: Policy, sigmas: Tensor, grid: int) -> tuple[dict[str, Any], list[Shown]]:
        scored = self.evaluate(policy, sigmas, shown=grid)
        scores = dict(scored.scores)
        if self.calibrations:
            of_rewards = {key: scores[f"{key}_reward"] for key in self.calibrations}
            scores[JOINT_CALIBRATED] = joint_quality(of_rewards, self.roles, self.calibrations)
        row: dict[str, Any] = {name: values.nanmean().item() for name, values in scores.items()}
        row["spread"] = {name: spread(values) for name, values in scores.items()}
        row["scored"] = {name: int((~values.isnan()).sum()) for name, values in scores.items()}
        return row, scored.shown(self.samples, grid)
