"""Series over the updates of a training: one run as it is, several seeds as their mean and its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from customized_grpo.measure.intervals import Estimate, over_seeds
from customized_grpo.report.content import Arm, History, Rows

NORMAL_95 = 1.96
NOT_METRICS = ("update", "spread", "scored")


@dataclass(frozen=True)
class Series:
    """Estimates at increasing updates; low and high are NaN where no interval is known."""

    updates: Sequence[int]
    values: Sequence[Estimate]

    def __bool__(self) -> bool:
        return bool(self.updates)


def series(arm: Arm, part: Literal["updates", "held_out"], metric: str, smooth: int = 1) -> Series:
    """A figure of an arm's rows, as means over the last `smooth` rows.

    Over several runs: at the updates that all have, with t intervals. Of one run: with the interval over its held-out
    cases, where the rows say how many were scored and how they spread.
    """
    each = [_known(getattr(run, part), metric) for run in arm.runs]
    updates = sorted(set.intersection(*(set(known) for known in each)))
    if len(arm.runs) == 1:
        values = [each[0][update] for update in updates]
    else:
        values = [over_seeds([known[update].mean for known in each]) for update in updates]
    if smooth == 1 or len(updates) < smooth:
        return Series(updates, values)
    windows = [updates[end - smooth : end] for end in range(smooth, len(updates) + 1)]
    means = [[fmean(known[update].mean for update in window) for known in each] for window in windows]
    return Series([window[-1] for window in windows], [over_seeds(runs) for runs in means])


def _known(rows: Rows, metric: str) -> dict[int, Estimate]:
    return {row["update"]: found for row in rows if (found := _of_row(row, metric)) is not None}


def _of_row(row: Mapping[str, Any], metric: str) -> Estimate | None:
    value = row.get(metric)
    if value is None or math.isnan(value):
        return None
    spread, scored = (row.get(name, {}).get(metric) for name in ("spread", "scored"))
    half = NORMAL_95 * spread / math.sqrt(scored) if spread is not None and scored else math.nan
    return Estimate(value, value - half, value + half)


def at_start(rows: Rows, metric: str) -> Estimate | None:
    return _of_row(rows[0], metric)


def at_end(rows: Rows, metric: str) -> Estimate | None:
    return _of_row(rows[-1], metric)


def held_out_metrics(arms: Sequence[Arm]) -> list[str]:
    """In the order of the rows: the trained rewards first."""
    rows = [row for arm in arms for run in arm.runs for row in run.held_out]
    return list(dict.fromkeys(name for row in rows for name in row if name not in NOT_METRICS))


def step_pulls(run: History) -> list[tuple[int, float, float]]:
    """(step, pull toward the prompt, pull toward identity), means over the run as shares of the largest sum.

    None where the rule has no weights that divide it.
    """
    by_step: dict[int, list[Mapping[str, float]]] = {}
    for row in run.updates:
        for step in row.get("steps", ()):
            if "prompt_pull" in step:
                by_step.setdefault(step["step"], []).append(step)
    pulls = [
        (step, fmean(row["prompt_pull"] for row in rows), fmean(row["identity_pull"] for row in rows))
        for step, rows in sorted(by_step.items())
    ]
    largest = max((prompt + identity for _, prompt, identity in pulls), default=0.0)
    return [(step, prompt / largest, identity / largest) for step, prompt, identity in pulls] if largest else []
