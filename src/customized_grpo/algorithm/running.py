"""Figures that run along with training: how good each reward is by now, and how far it spreads inside groups.

They are the memory of pooled normalisation and of balanced weights; everything else depends on one update alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from torch import Tensor

from .groups import group_spread

MEMORY = 0.9  # of the mean reward: about the last ten updates
LONGEST = 50  # updates that the mean spread looks back on


@dataclass(frozen=True)
class RunningFigures:
    """Figures by reward name. They start empty; an update that no reward could score changes nothing.

    updates  number of updates so far
    means    mean reward, m <- .9 m + .1 mean of the update
    best     the highest m so far
    spreads  mean standard deviation inside groups, over all updates so far, or about the last 50
    level    what dual ascent has added to the prompt's weight (`balance.py`)
    """

    updates: int = 0
    means: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    spreads: Mapping[str, float] = field(default_factory=dict)
    level: float = 0.0

    def after(self, rewards: Mapping[str, Tensor]) -> Self:
        """The figures after one more update with these rewards [P, G] by name (NaN = unscored)."""
        batch = {name: values.double().nanmean().item() for name, values in rewards.items()}
        means = {
            name: MEMORY * self.means[name] + (1 - MEMORY) * mean if name in self.means else mean
            for name, mean in batch.items()
            if not math.isnan(mean)
        }
        best = {name: max(mean, self.best.get(name, -math.inf)) for name, mean in means.items()}
        counted = replace(self, updates=self.updates + 1, means={**self.means, **means}, best={**self.best, **best})
        return counted.with_spreads(rewards)

    def with_spreads(self, values: Mapping[str, Tensor]) -> Self:
        """The figures with the spreads of these values [..., P, G], which belong to the latest update."""
        share = 1 / min(max(self.updates, 1), LONGEST)
        spreads = dict(self.spreads)
        for name, of_groups in values.items():
            spread = group_spread(of_groups)
            if not math.isnan(spread):
                before = spreads.get(name, spread)
                spreads[name] = before + share * (spread - before)
        return replace(self, spreads=spreads)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
