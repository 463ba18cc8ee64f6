"""The learner: what a rollout and its advantages change in the adapter.

for each pass over the rollout, for each minibatch of images:
    replay -> objective -> gradients, added over steps and micro-batches -> AdamW
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from customized_grpo.algorithm import (
    clipped_objective,
    divergence_objective,
    guarded_objective,
    kl_to_base,
    log_prob,
    nft_objective,
)
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.policies.base import Policy
from customized_grpo.policies.shadow import Shadow
from customized_grpo.runtime.distributed import Processes
from customized_grpo.runtime.memory import MicroBatches
from customized_grpo.training.forward import NoisedPoint
from customized_grpo.training.plan import Plan
from customized_grpo.training.record import Means
from customized_grpo.training.rollout import Point, Rollout, Sampler
from customized_grpo.training.watch import not_finite


@dataclass
class Learner:
    """The adapter's weights and their optimiser."""

    config: RunConfig
    policy: Policy  # with an adapter
    sampler: Sampler  # replays the transitions of rollouts
    plan: Plan
    batches: MicroBatches
    processes: Processes
    shadows: Sequence[Shadow] = ()  # copies of the adapter that follow it

    def __post_init__(self) -> None:
        self.parameters = list(self.policy.trainable_parameters().values())
        lr, decay = self.config.optimizer.lr, self.config.optimizer.weight_decay
        fused = self.policy.device.type == "cuda" or None  # the default kernel makes temporary copies of all weights
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=decay, fused=fused)
        self.steps = 0  # optimiser steps so far
        kl = ("kl",) if self.config.objective.kl > 0 else ()
        grpo = self.config.objective.kind == "grpo"
        self.figures = ("ratio_mean", "clip_fraction", "approx_kl", *kl) if grpo else ("velocity_change",)

    def optimise(
        self, update: int, rollout: Rollout[Any], advantages: Tensor, samples: Sequence[Sample], first: int = 0
    ) -> dict[str, float]:
        """`updates_per_rollout` passes over a rollout's trained transitions, each of `minibatches` optimiser steps.

        advantages [B, T] are those of all processes, NaN for an entry (an image at a step) that is not trained; this
        rollout's start at row `first`. A minibatch without any signal is skipped.
        """
        config = self.config.objective
        own = slice(first, first + len(rollout.images))
        figures = Means(*self.figures)
        norms = []
        for images in self._minibatches(len(advantages)) * config.updates_per_rollout:
            chosen = advantages.masked_fill(~images[:, None], torch.nan)
            if not self._active(chosen).any():
                continue
            try:
                for diagnostics in self._accumulate(update, rollout, chosen, own, samples):
                    figures.add(diagnostics)
                norms.append(self._apply(update))
            finally:  # frees memory for the next rollout; if this attempt failed, the next one must not add to it
                self.optimizer.zero_grad(set_to_none=True)
        if not norms:
            return {"gradient_norm": 0.0}
        return {**figures.over(self.processes), "gradient_norm": sum(norm / len(norms) for norm in norms)}

    def _minibatches(self, count: int) -> list[Tensor]:
        """Which of `count` images, group by group, belong to each minibatch: [count], an equal part of every group.

        Parts differ by at most one image. They depend on an image's number within its group alone, so any number of
        processes has the same minibatches.
        """
        size, parts = self.config.groups.size, self.config.objective.minibatches
        slots = torch.arange(count) % size * parts // size
        return [slots == part for part in range(parts)]

    def _active(self, advantages: Tensor) -> Tensor:
        """Which entries have a gradient: not those without a score, and of flat groups only those of KL.

        With `nft` flat groups have one, too: it draws the policy back to the one that sampled.
        """
        config = self.config.objective
        return ~advantages.isnan() & ((advantages != 0) | (config.kl > 0) | (config.kind == "nft"))

    def _accumulate(
        self, update: int, rollout: Rollout[Any], advantages: Tensor, own: slice, samples: Sequence[Sample]
    ) -> list[dict[str, Tensor]]:
        """Accumulate the gradient of a minibatch, by step and micro-batch; returns their diagnostics.

        Entries without a gradient are skipped. The loss is still divided by the number of all scored entries
        of all processes, so skipping does not change the result.
        """
        results, scored = [], int((~advantages.isnan()).sum())
        scales = self.plan.scales([point.step for point in rollout.trajectory]).tolist()
        for point, column, scale in zip(rollout.trajectory, advantages.unbind(dim=1), scales, strict=True):
            for images, advantage in self._passes(column, own):
                loss, diagnostics = self._loss(rollout, point, images, advantage, scale, scored)
                if not torch.isfinite(loss):
                    names = sorted({samples[image // self.config.groups.size].id for image in images.tolist()})
                    where = f", denoising step {point.step}, samples {', '.join(names)}"
                    raise not_finite("loss", update, where)
                loss.backward()
                results.append(diagnostics)
        return results

    def _passes(self, advantage: Tensor, own: slice) -> list[tuple[Tensor, Tensor]]:
        """The micro-batches of this process at one step: images of its rollout, and their advantages.

        advantage  [B] of all processes
        """
        active, size = self._active(advantage), self.batches.update
        images = active[own].nonzero().flatten()
        batches = [(part, advantage[own][part]) for part in images.split(size)] if len(images) else []
        if self.config.model.shard:  # the processes, whose shares are equal, must all run the same number of passes
            largest = int(active.view(self.processes.count, -1).sum(dim=1).max())
            idle = (torch.tensor([0]), torch.tensor([torch.nan]))  # an image that counts nothing
            batches += [idle] * (-(-largest // size) - len(batches))
        return batches

    def _loss(
        self,
        rollout: Rollout[Any],
        point: Point | NoisedPoint,
        images: Tensor,
        advantage: Tensor,
        scale: float,
        scored: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of one micro-batch of images at one step, and its diagnostics."""
        config = self.config.objective
        if isinstance(point, NoisedPoint):
            latents = point.latents[images]
            velocity = self.policy.velocity(latents, point.sigma, rollout.condition[images])
            fixed = point.old_velocity[images], latents, point.clean[images], point.sigma
            return nft_objective(velocity, *fixed, advantage.to(velocity), config.beta, scale=scale, normaliser=scored)
        mean, std = self.sampler.replay(self.policy, rollout, point, images)
        loss, diagnostics = self._policy_loss(point, images, mean, std, advantage, scale, scored)
        if config.kl > 0:
            with self.policy.base_policy(), torch.no_grad():
                base_mean, _ = self.sampler.replay(self.policy, rollout, point, images)
            kl = kl_to_base(mean, base_mean, std)[~advantage.isnan().to(mean.device)]
            loss = loss + config.kl * scale**2 * kl.sum() / scored  # its gradient has the step's factor twice
            diagnostics["kl"] = kl.detach().mean()
        return loss, diagnostics

    def _policy_loss(
        self, point: Point, images: Tensor, mean: Tensor, std: Tensor, advantage: Tensor, scale: float, scored: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the configured trust region, and its diagnostics."""
        config = self.config.objective
        new, old = log_prob(point.next_latents[images], mean, std), point.log_prob[images]
        advantage = advantage.to(new)
        if point.mean is None:
            return clipped_objective(new, old, advantage, config.clip_range, scale=scale, normaliser=scored)
        moved = kl_to_base(mean, point.mean[images], std)
        if config.trust == "dppo":
            limit = config.max_divergence
            return divergence_objective(new, old, advantage, moved, limit, scale=scale, normaliser=scored)
        return guarded_objective(new, old, advantage, moved, std, config.clip_range, normaliser=scored)

    def _apply(self, update: int) -> float:
        """One optimiser step with the gradients of all processes; returns their norm before clipping."""
        self.processes.sum_gradients(self.parameters)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.lr(self.steps)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.max_grad_norm))
        if not math.isfinite(norm):  # the step would make every weight NaN
            raise not_finite("gradient", update)
        self.steps += 1  # before step(): an update that ran out of memory inside it must not be repeated
        self.optimizer.step()
        for shadow in self.shadows:
            shadow.follow(self.steps)
        return norm
