"""The entries of a minibatch, each an image at a step that it trains, in as few passes as memory allows.

Images with steps of their own rarely share a step, so a pass takes entries of several steps, with a sigma for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from customized_grpo.policies.base import Condition
from customized_grpo.training.rollout import Rollout


@dataclass(frozen=True)
class MicroBatch:
    """N entries of a rollout, for one pass."""

    rollout: Rollout[Any]
    columns: Tensor  # [N], ascending: the place of each entry's step in the trajectory
    images: Tensor  # [N]: rows of the rollout
    advantage: Tensor  # [N]; NaN for an entry that counts nothing
    scale: Tensor  # [N]: the factor of its step

    @property
    def condition(self) -> Condition:
        return self.rollout.condition[self.images]

    def of(self, name: str) -> Tensor:
        """A field of the trajectory's points for each entry: [N] of their numbers, [N, ...] of their tensors."""
        columns, counts = self.columns.unique_consecutive(return_counts=True)
        parts = []
        for column, images in zip(columns.tolist(), self.images.split(counts.tolist()), strict=True):
            value = getattr(self.rollout.trajectory[column], name)
            # Numbers in float32, as torch converts the single sigma of a pass of the rollout.
            parts.append(value[images] if isinstance(value, Tensor) else torch.full((len(images),), value))
        return torch.cat(parts)


def layout(active: Tensor, size: int) -> list[Tensor]:
    """Which entries share a pass: [n, 2] of (column, image) for each pass, n <= size, step by step.

    Where every image trains every step, a pass has entries of one step: these are the shapes of the rollout's passes,
    and matrix products round by shape. So the ratio starts at exactly 1 if both take equal batches.

    active  [B, T]: which images train which steps
    """
    entries = active.T.nonzero()
    steps = entries.split(len(active)) if active.all() else (entries,)
    return [part for step in steps for part in step.split(size) if len(part)]
