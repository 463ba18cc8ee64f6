"""A mean with its 95 % bootstrap interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def estimate(values: Tensor, seed: int = 0) -> Estimate:
    """Mean of the scored values [N] and its percentile bootstrap interval; each value is a subject of its own.

    NaN (unscored) is left out. Raises ValueError where nothing is left.
    """
    scored = values[~values.isnan()].double().numpy()
    if len(scored) == 0:
        raise ValueError("no value to average: every case is unscored")
    rng = np.random.default_rng(seed)
    means = np.array([scored[rng.integers(len(scored), size=len(scored))].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(scored.mean()), float(low), float(high))


def estimates(scores: dict[str, Tensor], select: Tensor | None = None) -> dict[str, Estimate]:
    """`estimate` of every metric, over the selected cases (a mask or indices; None: all)."""
    chosen = slice(None) if select is None else select
    return {name: estimate(torch.as_tensor(values)[chosen]) for name, values in scores.items()}
