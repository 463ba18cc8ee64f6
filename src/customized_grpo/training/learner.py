"""The learner: what a rollout and its advantages change in the adapter.

for each pass over the rollout, for each minibatch of images:
    replay -> objective -> gradients, added over micro-batches of (image, step) -> AdamW
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from customized_grpo.algorithm import (
    NEED_OLD_MEAN,
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
from customized_grpo.training.micro_batch import MicroBatch, layout
from customized_grpo.training.plan import Plan
from customized_grpo.training.record import Means
from customized_grpo.training.rollout import Rollout, Sampler
from customized_grpo.training.watch import not_finite


@dataclass
class Learner:
    """The adapter's weights and their optimiser."""

    config: RunConfig
    policy: Policy  # with an adapter
    sampler: Sampler  # knows the steps of rollouts
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
        """Accumulate the gradient of a minibatch over its micro-batches; returns their diagnostics.

        Entries without a gradient are skipped. The loss is still divided by the number of all scored entries
        of all processes, so skipping does not change the result.
        """
        results, scored = [], int((~advantages.isnan()).sum())
        for batch in self._micro_batches(rollout, advantages, own):
            velocity, base = self._velocities(batch)
            loss, diagnostics = self._loss(batch, velocity, base, scored)
            if not torch.isfinite(loss):
                raise not_finite("loss", update, self._not_finite_at(batch, velocity, base, samples))
            loss.backward()
            results.append(diagnostics)
        return results

    def _micro_batches(self, rollout: Rollout[Any], advantages: Tensor, own: slice) -> list[MicroBatch]:
        """What this process computes of a minibatch, one pass each.

        advantages  [B, T] of all processes
        """
        active, size, own_advantages = self._active(advantages).cpu(), self.batches.update, advantages[own]
        scales = self.plan.scales([point.step for point in rollout.trajectory])
        parts = [part.unbind(dim=1) for part in layout(active[own], size)]
        batches = [
            MicroBatch(rollout, columns, images, own_advantages[images, columns], scales[columns])
            for columns, images in parts
        ]
        if self.config.model.shard:  # the processes, whose shares are equal, must all run the same number of passes
            most = max(len(layout(share, size)) for share in active.chunk(self.processes.count))
            first = torch.tensor([0])
            idle = MicroBatch(rollout, first, first, torch.tensor([torch.nan]), scales[:1])  # counts nothing
            batches += [idle] * (most - len(batches))
        return batches

    def _velocities(self, batch: MicroBatch) -> tuple[Tensor, Tensor | None]:
        """Of the policy and, if KL asks for it, of the base policy."""
        inputs = batch.of("latents"), batch.of("sigma"), batch.condition
        velocity = self.policy.velocity(*inputs)
        if self.config.objective.kl == 0:
            return velocity, None
        with self.policy.base_policy(), torch.no_grad():
            return velocity, self.policy.velocity(*inputs)

    def _loss(
        self, batch: MicroBatch, velocity: Tensor, base: Tensor | None, scored: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of a micro-batch with these velocities, and its diagnostics."""
        config, latents, sigma = self.config.objective, batch.of("latents"), batch.of("sigma")
        advantage, scale = batch.advantage.to(velocity), batch.scale.to(velocity)
        if config.kind == "nft":
            fixed = batch.of("old_velocity"), latents, batch.of("clean"), sigma
            return nft_objective(velocity, *fixed, advantage, config.beta, scale=scale, normaliser=scored)
        sigmas = sigma, batch.of("sigma_next")
        mean, std = self.sampler.step(latents, velocity, *sigmas)
        loss, diagnostics = self._policy_loss(batch, mean, std, advantage, scale, scored)
        if base is not None:
            base_mean, _ = self.sampler.step(latents, base, *sigmas)
            counted = ~advantage.isnan()
            kl = kl_to_base(mean, base_mean, std)[counted]
            # its gradient has the step's factor twice
            loss = loss + config.kl * (scale[counted] ** 2 * kl).sum() / scored
            diagnostics["kl"] = kl.detach().mean()
        return loss, diagnostics

    def _policy_loss(
        self, batch: MicroBatch, mean: Tensor, std: Tensor, advantage: Tensor, scale: Tensor, scored: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the configured trust region, and its diagnostics."""
        config = self.config.objective
        new, old = log_prob(batch.of("next_latents"), mean, std), batch.of("log_prob")
        if config.trust not in NEED_OLD_MEAN:
            return clipped_objective(new, old, advantage, config.clip_range, scale=scale, normaliser=scored)
        moved = kl_to_base(mean, batch.of("mean"), std)
        if config.trust == "dppo":
            limit = config.max_divergence
            return divergence_objective(new, old, advantage, moved, limit, scale=scale, normaliser=scored)
        return guarded_objective(new, old, advantage, moved, std.flatten(), config.clip_range, normaliser=scored)

    @torch.no_grad()
    def _not_finite_at(
        self, batch: MicroBatch, velocity: Tensor, base: Tensor | None, samples: Sequence[Sample]
    ) -> str:
        """The first step of a micro-batch with an entry whose loss is not finite, and the samples of such entries.

        It runs no pass, for which other processes would wait.
        """
        steps: dict[int, set[str]] = {}
        for entry, (column, image) in enumerate(zip(batch.columns.tolist(), batch.images.tolist(), strict=True)):
            alone = torch.full_like(batch.advantage, torch.nan)
            alone[entry] = batch.advantage[entry]
            loss, _ = self._loss(replace(batch, advantage=alone), velocity, base, 1)
            if not torch.isfinite(loss):
                step = batch.rollout.trajectory[column].step
                steps.setdefault(step, set()).add(samples[image // self.config.groups.size].id)
        if not steps:  # only their sum is not finite
            return ""
        step, names = next(iter(steps.items()))
        return f", denoising step {step}, samples {', '.join(sorted(names))}"

    def _apply(self, update: int) -> float:
        """One optimiser step with the gradients of all processes; returns their norm before clipping."""
        self.processes.sum_gradients(self.parameters)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.lr(self.steps)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.max_grad_norm))
        if not math.isfinite(norm):  # the step would make every weight NaN
            raise not_finite("gradient", update)
        self.optimizer.step()
        self.steps += 1
        for shadow in self.shadows:
            shadow.follow(self.steps)
        return norm
