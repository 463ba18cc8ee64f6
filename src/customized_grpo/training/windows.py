"""Steps that each image of an update draws for itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class DrawnSteps:
    """`size` steps for each of B images.

    orders  [B, size], true indices; each image's are different, in the order in which they were drawn
    """

    orders: Tensor

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The T steps that some image trains, ascending."""
        return tuple(self.orders.unique().tolist())

    @property
    def trained(self) -> Tensor:
        """[B, T]: whether an image trains a step."""
        return ~self.by_step(torch.zeros(self.orders.shape)).isnan()

    def by_step(self, values: Tensor) -> Tensor:
        """Values [B, size] in the order of drawing as [B, T] by step; NaN where the image does not train the step."""
        columns = torch.searchsorted(torch.tensor(self.steps), self.orders)
        found = torch.full((len(values), len(self.steps)), math.nan, dtype=values.dtype, device=values.device)
        return found.scatter(1, columns.to(values.device), values)
