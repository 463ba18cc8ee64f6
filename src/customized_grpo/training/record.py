"""What an update writes into metrics.jsonl: figures, means over micro-batches, and a clock."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from customized_grpo.algorithm import conflict_diagnostics, role_advantages
from customized_grpo.config import OF_AVERAGE
from customized_grpo.runtime.distributed import Processes

SATURATED_BELOW = 0.01


def reward_figures(scores: Mapping[str, Tensor], roles: Mapping[str, str]) -> dict[str, Any]:
    """Mean and spread of each reward [P, G], agreement of identity and prompt inside groups, and unscored images.

    "unscored" counts the images that some reward could not score; if there are any, "unscored_by" has them by reward.
    """
    figures: dict[str, Any] = {}
    for key, values in scores.items():
        figures[f"reward_{key}"] = values.nanmean().item()
        figures[f"reward_{key}_std"] = spread(values)
        figures[f"saturated_{key}"] = saturated(values)
    advantages = role_advantages(scores, roles)
    figures |= conflict_diagnostics(advantages["prompt"], advantages["identity"])
    figures["unscored"] = int(torch.stack(list(scores.values())).isnan().any(dim=0).sum())
    if figures["unscored"]:
        figures["unscored_by"] = {key: int(values.isnan().sum()) for key, values in scores.items()}
    return figures


def progress_line(row: Mapping[str, Any], rewards: Iterable[str]) -> str:
    """What the progress bar shows of an update: the rewards, and the level of the weights if they are balanced."""
    figures = {key: row[f"reward_{key}"] for key in rewards}
    if "level" in row:
        figures["prompt weight"] = row["level"]
    return ", ".join(f"{name}={value:.3f}" for name, value in figures.items())


def spread(values: Tensor) -> float:
    """Standard deviation over all scored values, any shape; NaN for fewer than two."""
    scored = values[~values.isnan()]
    return scored.std().item() if len(scored) > 1 else math.nan


def saturated(values: Tensor) -> float:
    """Share of groups [P, G] in which a reward spreads by less than a hundredth of its size: only noise to learn from.

    Its size in a group is |mean|, or its spread over all groups if that is larger (a mean may be near zero).
    """
    scored = values[~values.isnan().all(dim=1)].double()
    if len(scored) == 0:
        return math.nan
    means = scored.nanmean(dim=1)
    deviations = (scored - means[:, None]).square().nanmean(dim=1).sqrt()
    overall = (values[~values.isnan()].double()).std(correction=0)
    return (deviations < SATURATED_BELOW * torch.maximum(means.abs(), overall)).double().mean().item()


def with_average(figures: Mapping[str, Any], averaged: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation, and those of the moving average under names that end in `_ema`."""
    named = {f"{name}{OF_AVERAGE}": value for name, value in averaged.items() if not isinstance(value, Mapping)}
    parts = {
        part: {**figures[part], **{f"{name}{OF_AVERAGE}": value for name, value in values.items()}}
        for part, values in averaged.items()
        if isinstance(values, Mapping)
    }
    return {**figures, **named, **parts}


@dataclass
class Highest:
    """The highest value of a figure in the evaluations so far.

    An evaluation does not count if more than `max_unscored` of the cases that an earlier one scored have no score in
    it: over few cases a figure may be high by chance.
    """

    figure: str | None  # None: nothing is looked for
    max_unscored: float
    value: float = -math.inf
    scored: int = 0  # most cases of an evaluation

    def beaten_by(self, row: Mapping[str, Any]) -> bool:
        """Whether the row of an evaluation holds a higher value, which is the highest from then on."""
        value = None if self.figure is None else row.get(self.figure)
        if value is None or math.isnan(value):
            return False
        scored = row["scored"][self.figure]
        self.scored = max(self.scored, scored)
        if scored < (1 - self.max_unscored) * self.scored or value <= self.value:
            return False
        self.value = value
        return True


def held_out_summary(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """One line that compares a run's first evaluation with its last; "" if there are fewer than two."""
    if len(evaluations) < 2:
        return ""
    first, last = evaluations[0], evaluations[-1]
    names = [name for name, value in first.items() if name != "update" and isinstance(value, int | float)]
    known = [name for name in names if isinstance(last.get(name), int | float)]
    figures = (f"{name} {first[name]:.3f} -> {last[name]:.3f}" for name in known)
    return f"held-out cases, update {first['update']} -> {last['update']}: {', '.join(figures)}"


class Means:
    """Means of these diagnostics over all entries of an update, from the means of its micro-batches."""

    def __init__(self, *names: str):
        self.names = names
        self._sums = torch.zeros(len(names) + 1, dtype=torch.float64)  # the last one is the number of entries

    def add(self, diagnostics: Mapping[str, Tensor]) -> None:
        """Add means over `diagnostics["count"]` entries; if that is 0 they are NaN, and nothing is added."""
        if count := int(diagnostics["count"]):
            means = [float(diagnostics[name]) for name in self.names]
            self._sums += count * torch.tensor([*means, 1.0], dtype=torch.float64)

    def over(self, processes: Processes) -> dict[str, float]:
        """Means by name over the entries of all processes."""
        *sums, count = processes.sum(self._sums).tolist()
        return {name: total / count for name, total in zip(self.names, sums, strict=True)}


@contextmanager
def clock(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the seconds spent in the block to `seconds[phase]`."""
    start = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
