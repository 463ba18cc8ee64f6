"""Means with 95 % intervals: bootstrap over subjects within an evaluation, t over seeds between runs.

If there is only one subject, its values are resampled: the interval then tells nothing about other subjects.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval; low and high are NaN for the single run of `over_seeds`."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def estimate(values: Tensor, clusters: Sequence[Hashable] | None = None, seed: int = 0) -> Estimate:
    """Mean of the scored values [N] and its percentile bootstrap interval.

    clusters  what is resampled as a whole: the subject of each value, because images of one subject are similar.
              None, or a single one among the scored values: every value is resampled on its own.

    NaN (unscored) is left out. Raises ValueError if nothing is left.
    """
    scored = ~values.isnan().cpu()
    numbers = values.cpu()[scored].double().numpy()
    if len(numbers) == 0:
        raise ValueError("no value to average: every case is unscored")
    names = range(len(values)) if clusters is None else clusters
    kept = [name for name, keep in zip(names, scored.tolist(), strict=True) if keep]
    member, drawn = resample(kept, seed)
    sums, counts = np.bincount(member, weights=numbers), np.bincount(member)
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(numbers.mean()), float(low), float(high))


def resample(clusters: Sequence[Hashable], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(unit of each value [N], drawn units [RESAMPLES, units]): units are the clusters, or the values of a single one.

    Resampling a single cluster as a whole would give the same mean each time, and an interval of zero width.
    """
    position = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    single = len(position) == 1
    member = np.arange(len(clusters)) if single else np.array([position[name] for name in clusters])
    units = len(clusters) if single else len(position)
    return member, np.random.default_rng(seed).integers(units, size=(RESAMPLES, units))


def estimates(
    scores: Mapping[str, Tensor], select: Tensor | None = None, clusters: Sequence[Hashable] | None = None
) -> dict[str, Estimate]:
    """`estimate` of every metric, over the selected cases (a mask [N]; None: all)."""
    if select is None:
        return {name: estimate(values, clusters) for name, values in scores.items()}
    kept = clusters and [name for name, keep in zip(clusters, select.tolist(), strict=True) if keep]
    return {name: estimate(values[select], kept) for name, values in scores.items()}


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over runs with different seeds, and its t interval: the seed is the unit."""
    numbers = np.asarray(values, dtype=float)
    if len(numbers) == 1:
        return Estimate(float(numbers[0]), float("nan"), float("nan"))
    return over_cases(float(numbers.mean()), float(numbers.std(ddof=1)), len(numbers))


def over_cases(mean: float, spread: float, count: int) -> Estimate:
    """A mean and its t interval, from the standard deviation of `count` independent values; NaN for a single one."""
    half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * spread / np.sqrt(count) if count > 1 else float("nan")
    return Estimate(mean, float(mean - half), float(mean + half))


@dataclass(frozen=True)
class Difference:
    """Arm minus arm, paired by seed, with the p-value of a paired t-test (NaN for a single pair)."""

    estimate: Estimate
    p_value: float
    pairs: int


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """first - second over the seeds that both have. Raises ValueError if they share none.

    If every pair differs by exactly the same amount the t-test is undefined: p is 0, or 1 if that amount is zero.
    """
    seeds = sorted({*first} & {*second})
    if not seeds:
        raise ValueError("no seed in common: nothing can be paired")
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    if len(differences) == 1:
        p_value = float("nan")
    elif np.ptp(differences) == 0:
        p_value = float(differences[0] == 0)
    else:
        _, p_value = map(float, stats.ttest_1samp(differences, 0))
    return Difference(over_seeds(differences.tolist()), p_value, len(seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979); NaN stays NaN and is not counted."""
    known = sorted((p, index) for index, p in enumerate(p_values) if not np.isnan(p))
    adjusted, worst = [float("nan")] * len(p_values), 0.0
    for rank, (p, index) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * p))
        adjusted[index] = worst
    return adjusted
