"""Series over the updates of a training: of one run its own figures, of several seeds their mean and interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from customized_grpo.calibration.intervals import Estimate, over_seeds
from customized_grpo.report.content import Arm, History, Rows

NORMAL_95 = 1.96
NOT_METRICS = ("update", "spread", "scored")


@dataclass(frozen=True)
class Series:
    """Estimates at increasing updates; low and high are NaN if the interval is unknown."""

    updates: Sequence[int]
    values: Sequence[Estimate]

    def __bool__(self) -> bool:
        return bool(self.updates)


def series(arm: Arm, part: Literal["updates", "held_out"], metric: str, smooth: int = 1) -> Series:
    """A figure of an arm's rows, averaged over the last `smooth` rows.

    Several runs: at the updates that all of them have, with t intervals. One run: with the interval over its held-out
    cases, if the rows have the spread and the number of scored cases.
    """
    by_run = [_known(getattr(run, part), metric) for run in arm.runs]
    updates = sorted(set.intersection(*(set(known) for known in by_run)))
    if len(by_run) == 1:
        values = [by_run[0][update] for update in updates]
    else:
        values = [over_seeds([known[update].mean for known in by_run]) for update in updates]
    if smooth == 1 or len(updates) < smooth:
        return Series(updates, values)
    windows = [updates[end - smooth : end] for end in range(smooth, len(updates) + 1)]
    means = [[fmean(known[update].mean for update in window) for known in by_run] for window in windows]
    return Series([window[-1] for window in windows], [over_seeds(of_runs) for of_runs in means])


def _known(rows: Rows, metric: str) -> dict[int, Estimate]:
    return {row["update"]: estimate for row in rows if (estimate := _of_row(row, metric)) is not None}


def _of_row(row: Mapping[str, Any], metric: str) -> Estimate | None:
    """None if the row has no such figure."""
    value = row.get(metric)
    if not isinstance(value, int | float) or math.isnan(value):
        return None
    spread, scored = (row.get(name, {}).get(metric) for name in ("spread", "scored"))
    half = NORMAL_95 * spread / math.sqrt(scored) if spread is not None and scored else math.nan
    return Estimate(value, value - half, value + half)


def at_start(rows: Rows, metric: str) -> Estimate | None:
    return _of_row(rows[0], metric)


def at_end(rows: Rows, metric: str) -> Estimate | None:
    return _of_row(rows[-1], metric)


def held_out_metrics(arms: Sequence[Arm]) -> list[str]:
    """In the order of the rows, which is: trained rewards first."""
    rows = [row for arm in arms for run in arm.runs for row in run.held_out]
    return list(dict.fromkeys(name for row in rows for name in row if name not in NOT_METRICS))


def step_pulls(run: History) -> list[tuple[int, float, float]]:
    """(step, pull toward the prompt, pull toward identity): means over the run, divided by the largest sum of both.

    Empty if the shaping rule has no weights.
    """
    by_step: dict[int, list[Mapping[str, float]]] = {}
    for row in run.updates:
        for step in row.get("steps", ()):
            if step.get("prompt_pull") is not None and step.get("identity_pull") is not None:
                by_step.setdefault(step["step"], []).append(step)
    pulls = [
        (step, fmean(row["prompt_pull"] for row in rows), fmean(row["identity_pull"] for row in rows))
        for step, rows in sorted(by_step.items())
    ]
    largest = max((prompt + identity for _, prompt, identity in pulls), default=0.0)
    return [(step, prompt / largest, identity / largest) for step, prompt, identity in pulls] if largest else []
