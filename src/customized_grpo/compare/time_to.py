"""How many updates, and minutes, a run takes until a held-out figure first reaches a level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from customized_grpo.compare.comparison import BASE, Comparison, Results


@dataclass(frozen=True)
class Reached:
    """When the runs of one arm first reach a level; None for a run that never does (it is censored at its end)."""

    arm: str
    metric: str
    level: float
    updates: tuple[int | None, ...]  # by seed
    minutes: tuple[float | None, ...]  # the same moments; None also where seconds are unknown

    def as_dict(self) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "metric": self.metric,
            "level": self.level,
            "updates": list(self.updates),
            "minutes": list(self.minutes),
        }


def times_to(comparison: Comparison, results: Results) -> list[Reached]:
    """Every trained arm and every level of `time_to`, in seeds whose evaluations have the figure."""
    found = []
    for metric, level in comparison.time_to.items():
        for arm, by_seed in results.items():
            rows = {seed: run["held_out"] for seed, run in by_seed.items() if _has(run["held_out"], metric)}
            if arm == BASE or not rows:
                continue
            updates = {seed: first_at(of_run, metric, level) for seed, of_run in rows.items()}
            minutes = [_minutes(by_seed[seed].get("seconds"), update) for seed, update in updates.items()]
            found.append(Reached(arm, metric, level, tuple(updates.values()), tuple(minutes)))
    return found


def _has(held_out: Sequence[dict[str, Any]], metric: str) -> bool:
    return bool(held_out) and all(metric in row for row in held_out)


def first_at(held_out: Sequence[dict[str, Any]], metric: str, level: float) -> int | None:
    """The update of the first evaluation whose figure is at least `level`."""
    return next((row["update"] for row in held_out if row[metric] >= level), None)


def _minutes(seconds: Sequence[float] | None, update: int | None) -> float | None:
    return None if seconds is None or update is None else sum(seconds[:update]) / 60


def censored_median(values: Sequence[float | None]) -> float | None:
    """The median of times, of which None (never) is later than all others; None if the median itself is never."""
    middle = median(math.inf if value is None else value for value in values)
    return None if math.isinf(middle) else middle


def time_table(reached: Sequence[Reached]) -> str:
    """In Markdown, with what each column means."""
    lines = ["| arm | level | reached | updates: median (range) | minutes: median |", "| --- " * 5 + "|"]
    for one in reached:
        known = [update for update in one.updates if update is not None]
        middle, minutes = censored_median(one.updates), censored_median(one.minutes)
        shown = "-" if middle is None else f"{middle:g}"
        cells = (
            one.arm,
            f"{one.metric} {one.level:g}",
            f"{len(known)} of {len(one.updates)}",
            f"{shown} ({min(known)} to {max(known)})" if known else "never",
            "-" if minutes is None else f"{minutes:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        "The first evaluation on held-out cases at which the figure is that high. In the median, a run that never "
        "gets there counts as later than all that do; - means that half of the runs or more never get there, or that "
        "seconds are not known. Minutes are the updates' own, on the machine that ran them."
    )
    return "\n".join([*lines, "", note])
