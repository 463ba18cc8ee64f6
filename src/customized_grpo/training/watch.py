"""Warnings while a run trains: what its own figures say is going wrong, each said once.

Three things that users of online RL find out days later:
- competitive degradation: one reward's held-out trend rises while the other's falls (arXiv 2510.18263);
- hacking: a trained reward rises on held-out cases while a metric of the same thing, not trained on, falls;
- saturation: most groups give a reward no spread, so that its advantages are noise or nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from customized_grpo.errors import RunError

EVALUATIONS = 5  # the window of a trend; fewer have no trend worth the name
SIGNIFICANCE = 0.05  # of a trend's slope, two-sided; both trends of a warning must reach it
SMALLEST_CHANGE = 0.25  # of a trend over its window, in standard deviations of the metric over the evaluated images
UPDATES = 10  # the window of saturation
SATURATED = 0.75  # share of groups without spread; windows of late steps alone leave many


Finding = tuple[tuple[str, ...], str]  # kind and what it is about, said once; the sentence


@dataclass(frozen=True)
class RunWarning:
    """One warning: the update that it came at, what kind, one sentence with the figures."""

    update: int
    kind: str
    message: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Trend:
    """Change of a metric along its regression line over the window, from the first to the last evaluation."""

    first: float
    last: float
    rising: bool
    falling: bool

    def __str__(self) -> str:
        return f"{self.first:.3f} to {self.last:.3f}"


@dataclass
class Watch:
    """Sees every row of a run in order; says each kind of warning about each metric once."""

    trained: Mapping[str, str]  # key of a reward -> name of its metric on held-out cases, "identity_reward"
    roles: Mapping[str, str] = field(default_factory=dict)  # of the rewards by key; the key itself where left out
    measures: Mapping[str, str] = field(default_factory=dict)  # by name of a further metric: identity, prompt or both
    evaluations: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=EVALUATIONS))
    saturation: dict[str, deque[float]] = field(default_factory=dict)
    reported: set[tuple[str, ...]] = field(default_factory=set)
    unread: bool = False  # whether the last evaluation has not been looked at

    def observe_evaluation(self, row: Mapping[str, Any]) -> None:
        """A row of evaluations.jsonl; what it means is said with the next update's row."""
        self.evaluations.append(dict(row))
        self.unread = True

    def observe(self, row: Mapping[str, Any]) -> list[RunWarning]:
        """A row of metrics.jsonl, after the evaluation of the same update; the warnings that are due with it."""
        found = [*self._saturated(row), *(self._trends() if self.unread else ())]
        self.unread = False
        due = [(key, message) for key, message in found if key not in self.reported]
        self.reported |= {key for key, _ in due}
        return [RunWarning(row["update"], key[0], message) for key, message in due]

    def annotate(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row, with the warnings that are due with it under "warnings", where there are any."""
        warnings = [warning.as_dict() for warning in self.observe(row)]
        return {**row, "warnings": warnings} if warnings else row

    def replay(self, rows: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> None:
        """Bring a fresh watch to where the logs of a stopped run left off."""
        waiting = deque(evaluations)
        for row in rows:
            while waiting and waiting[0]["update"] <= row["update"]:
                self.observe_evaluation(waiting.popleft())
            self.observe(row)
        for evaluation in waiting:
            self.observe_evaluation(evaluation)

    # --- what can be wrong -------------------------------------------------------------------------------------------

    def _saturated(self, row: Mapping[str, Any]) -> Iterator[Finding]:
        for role in self.trained:
            shares, share = self.saturation.setdefault(role, deque(maxlen=UPDATES)), row[f"saturated_{role}"]
            if share is None or math.isnan(share):  # nothing could be scored; null once it is read back
                continue
            shares.append(share)
            if len(shares) == UPDATES and (share := float(np.mean(shares))) >= SATURATED:
                yield (
                    ("saturated groups", role),
                    f"over the last {UPDATES} updates {share:.0%} of the groups had no spread in the {role} reward: "
                    "it decides nothing there; use harder prompts, earlier steps, more noise or a finer reward",
                )

    def _trends(self) -> Iterator[Finding]:
        yield from self._degraded()
        yield from self._hacked()

    def _degraded(self) -> Iterator[Finding]:
        trends = {role: self._trend(name) for role, name in self.trained.items()}
        for up, rising in trends.items():
            for down, falling in trends.items():
                if rising and falling and rising.rising and falling.falling:
                    yield (
                        ("competitive degradation", up, down),
                        f"{self._window()} the {up} reward of held-out cases rose from {rising} while the {down} "
                        f"reward fell from {falling}",
                    )

    def _hacked(self) -> Iterator[Finding]:
        for role, name in self.trained.items():
            rising = self._trend(name)
            if rising is None or not rising.rising:
                continue
            for metric in self._of_the_same(role):
                falling = self._trend(metric)
                if falling and falling.falling:
                    yield (
                        ("hacking suspected", role, metric),
                        f"{self._window()} the {role} reward of held-out cases rose from {rising} while {metric}, "
                        f"which is not trained on, fell from {falling}",
                    )

    def _of_the_same(self, role: str) -> list[str]:
        """Metrics of the evaluations that measure what the role's reward should, without being it.

        Those that measure both qualities speak of this one as long as no other reward falls and pulls them down.
        """
        falls = [trend.falling for name in self.trained.values() if (trend := self._trend(name))]
        wanted = (self.roles.get(role, role), *(() if any(falls) else ("both",)))
        return [name for name in self.evaluations[-1] if self.measures.get(name) in wanted]

    def _window(self) -> str:
        first, last = (self.evaluations[index]["update"] for index in (0, -1))
        return f"over the last {EVALUATIONS} evaluations (updates {first} to {last})"

    def _trend(self, metric: str) -> Trend | None:
        """None without a full window of figures."""
        values = [row.get(metric) for row in self.evaluations]
        numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
        spread = self.evaluations[-1]["spread"].get(metric) if self.evaluations else None
        if len(numbers) < EVALUATIONS or np.isnan(numbers).any() or not spread:
            return None
        updates = np.array([row["update"] for row in self.evaluations], dtype=float)
        line: Any = stats.linregress(updates, numbers)
        first, last = (line.intercept + line.slope * at for at in (updates[0], updates[-1]))
        clear = line.pvalue < SIGNIFICANCE and abs(last - first) >= SMALLEST_CHANGE * spread
        return Trend(first, last, rising=clear and line.slope > 0, falling=clear and line.slope < 0)


# --- what ends a run -------------------------------------------------------------------------------------------------


class TrainingError(RunError, RuntimeError):
    """Training cannot go on; the message says at which update and sample, and what to do."""


def not_finite(what: str, update: int, where: str = "") -> TrainingError:
    return TrainingError(
        f"the {what} is not finite at update {update}{where}; lower optimizer.lr or use model.dtype=float32. What was "
        "saved before is whole."
    )


def ratio_is_off(worst: float, tolerance: float) -> TrainingError:
    return TrainingError(
        f"before the first update, replaying the rollout changes log-probabilities by {worst:.2e} (at most "
        f"{tolerance:.0e} is rounding), so the ratio of new to old policy would not be 1. Usual causes: "
        "dropout that is active in the update (call .eval()), weights changed between rollout and update, "
        "or another precision in one of the two."
    )
