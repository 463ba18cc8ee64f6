"""The learner: what a rollout and its advantages change in the adapter.

for each optimiser step:  replay -> objective -> gradients, added over steps and micro-batches -> AdamW
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.algorithm import clipped_objective, kl_to_base, log_prob
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.policies.base import Policy
from customized_grpo.policies.shadow import Shadow
from customized_grpo.runtime.distributed import Processes
from customized_grpo.runtime.memory import MicroBatches
from customized_grpo.training.plan import Plan
from customized_grpo.training.record import Means
from customized_grpo.training.rollout import Point, Rollout, Sampler
from customized_grpo.training.watch import not_finite


@dataclass
class Learner:
    """The adapter's weights and their optimiser."""

    config: RunConfig
    policy: Policy  # with an adapter
    sampler: Sampler  # that made the rollouts
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

    def optimise(
        self, update: int, rollout: Rollout, advantages: Tensor, samples: Sequence[Sample], first: int = 0
    ) -> dict[str, float]:
        """`updates_per_rollout` optimiser steps on all trained transitions of a rollout.

        advantages [B, T] are those of all processes; this rollout's start at row `first`. Images whose advantages are
        all zero (a flat group) or NaN have no gradient and are skipped; the loss is still divided by the number of all
        scored entries, so skipping does not change the result.
        """
        config, scored = self.config.objective, int((~advantages.isnan()).sum())
        signal = torch.full((len(advantages),), config.kl > 0) | (advantages.nan_to_num() != 0).any(dim=1)
        signal &= ~advantages.isnan().all(dim=1)
        if not signal.any():
            return {"gradient_norm": 0.0}
        signal |= self.config.model.shard  # sharded processes must all run the same number of passes
        own = slice(first, first + len(rollout.images))
        active, advantages = signal[own].nonzero().flatten(), advantages[own]
        figures = Means("ratio_mean", "clip_fraction", "approx_kl", *(("kl",) if config.kl > 0 else ()))
        norms = []
        for _ in range(config.updates_per_rollout):
            try:
                for diagnostics in self._accumulate(update, rollout, advantages, active, scored, samples):
                    figures.add(diagnostics)
                norms.append(self._apply(update))
            finally:  # frees memory for the next rollout; if this attempt failed, the next one must not add to it
                self.optimizer.zero_grad(set_to_none=True)
        return {**figures.over(self.processes), "gradient_norm": sum(norm / len(norms) for norm in norms)}

    def _accumulate(
        self,
        update: int,
        rollout: Rollout,
        advantages: Tensor,
        active: Tensor,
        scored: int,
        samples: Sequence[Sample],
    ) -> list[dict[str, Tensor]]:
        """Accumulate the gradient over `active` images, by step and micro-batch; returns their diagnostics."""
        results = []
        scales = self.plan.scales([point.step for point in rollout.trajectory]).tolist()
        for point, advantage, scale in zip(rollout.trajectory, advantages.unbind(dim=1), scales, strict=True):
            for images in active.split(self.batches.update) if len(active) else ():
                loss, diagnostics = self._loss(rollout, point, images, advantage[images], scale, scored)
                if not torch.isfinite(loss):
                    names = sorted({samples[image // self.config.groups.size].id for image in images.tolist()})
                    where = f", denoising step {point.step}, samples {', '.join(names)}"
                    raise not_finite("loss", update, where)
                loss.backward()
                results.append(diagnostics)
        return results

    def _loss(
        self, rollout: Rollout, point: Point, images: Tensor, advantage: Tensor, scale: float, scored: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of one micro-batch of images at one step, and its diagnostics."""
        config = self.config.objective
        mean, std = self.sampler.replay(self.policy, rollout, point, images)
        new = log_prob(point.next_latents[images], mean, std)
        old = point.log_prob[images]
        loss, diagnostics = clipped_objective(
            new, old, advantage.to(new), config.clip_range, weight=scale, normaliser=scored
        )
        if config.kl > 0:
            with self.policy.base_policy(), torch.no_grad():
                base_mean, _ = self.sampler.replay(self.policy, rollout, point, images)
            kl = kl_to_base(mean, base_mean, std)[~advantage.isnan().to(mean.device)]
            loss = loss + config.kl * kl.sum() / scored
            diagnostics["kl"] = kl.detach().mean()
        return loss, diagnostics

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
