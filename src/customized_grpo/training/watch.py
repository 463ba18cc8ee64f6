"""Warnings while a run trains: what its own figures show is going wrong, each reported once.

Three things that users of online RL otherwise notice days later:
- competitive degradation: one reward's held-out trend rises while the other's falls (arXiv 2510.18263);
- hacking: a trained reward rises on held-out cases while an untrained metric of the same quality falls;
- saturation: a reward has no spread in most groups, so its advantages are noise or zero.
"""

from __future__ import annotations

import math
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from customized_grpo.errors import RunError
from customized_grpo.files.paths import as_argument

EVALUATIONS = 5  # the window of a trend; fewer evaluations do not make one
SIGNIFICANCE = 0.05  # of a trend's slope, two-sided; both trends of a warning must reach it
SMALLEST_CHANGE = 0.25  # of a trend over its window, in standard deviations of the metric over the evaluated images
UPDATES = 10  # the window of saturation
DEGRADATION = "competitive degradation"
SATURATED = 0.75  # mean share of groups without spread; windows of late steps alone leave many of those


@dataclass(frozen=True)
class RunWarning:
    """One warning, written into the row of its update.

    A warning about trends names the held-out metrics that rose and fell, such as "identity_reward" and
    "oracle_identity"; any other has None for both.
    """

    update: int
    kind: str
    message: str  # one sentence with the figures
    rising: str | None = None
    falling: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Finding = tuple[tuple[str, ...], RunWarning]  # what identifies the finding, so that it is reported once; the warning


@dataclass(frozen=True)
class Trend:
    """Change of a metric along its regression line, from the first to the last evaluation of the window."""

    first: float
    last: float
    rising: bool
    falling: bool

    def __str__(self) -> str:
        return f"{self.first:.3f} to {self.last:.3f}"


@dataclass
class Watch:
    """Reads every row of a run in order; reports each kind of warning about each metric once.

    trained   key of a reward -> name of its held-out metric, such as "identity_reward"
    roles     key of a reward -> its role; default: the key itself
    measures  untrained metric -> "identity", "prompt" or "both"
    advice    what to set if the reward of the second role falls while one of the first rises
    restraint  what to set if the policy should stay nearer to where it came from
    """

    trained: Mapping[str, str]
    roles: Mapping[str, str] = field(default_factory=dict)
    measures: Mapping[str, str] = field(default_factory=dict)
    advice: Callable[[str, str], str] = lambda rising, falling: ""  # noqa: ARG005
    restraint: str = "objective.kl=0.01"
    evaluations: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=EVALUATIONS))
    saturation: dict[str, deque[float]] = field(default_factory=dict)
    reported: set[tuple[str, ...]] = field(default_factory=set)
    evaluation_is_new: bool = False  # the trends have not been checked since the last evaluation

    def observe_evaluation(self, row: Mapping[str, Any]) -> None:
        """Take a row of evaluations.jsonl; its warnings come with the next update's row."""
        self.evaluations.append(dict(row))
        self.evaluation_is_new = True

    def has_evaluated(self, update: int) -> bool:
        """Whether the newest evaluation came after this update."""
        return bool(self.evaluations) and self.evaluations[-1]["update"] == update

    def observe(self, row: Mapping[str, Any]) -> list[RunWarning]:
        """Take a row of metrics.jsonl, after the evaluation of the same update; returns the new warnings."""
        findings = list(self._saturated(row))
        if self.evaluation_is_new:
            findings += [*self._degraded(row["update"]), *self._hacked(row["update"])]
        self.evaluation_is_new = False
        new = {key: warning for key, warning in findings if key not in self.reported}
        self.reported |= new.keys()
        return list(new.values())

    def annotate(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row, with its new warnings, if there are any, under "warnings"."""
        warnings = [warning.as_dict() for warning in self.observe(row)]
        return {**row, "warnings": warnings} if warnings else row

    def replay(self, rows: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> None:
        """Bring a fresh watch to the state at the end of a stopped run's logs."""
        waiting = deque(evaluations)
        for row in rows:
            while waiting and waiting[0]["update"] <= row["update"]:
                self.observe_evaluation(waiting.popleft())
            self.observe(row)
        for evaluation in waiting:
            self.observe_evaluation(evaluation)

    # --- what can go wrong -------------------------------------------------------------------------------------------

    def _saturated(self, row: Mapping[str, Any]) -> Iterator[Finding]:
        kind = "saturated groups"
        for key in self.trained:
            shares, share = self.saturation.setdefault(key, deque(maxlen=UPDATES)), row[f"saturated_{key}"]
            if share is None or math.isnan(share):  # nothing could be scored: NaN in memory, null in the log
                continue
            shares.append(share)
            if len(shares) == UPDATES and (mean := float(np.mean(shares))) >= SATURATED:
                message = (
                    f"over the last {UPDATES} updates {mean:.0%} of the groups had no spread in the {key} reward: "
                    "it decides nothing there; use harder prompts, earlier steps, more noise or a finer reward"
                )
                yield (kind, key), RunWarning(row["update"], kind, message)

    def _degraded(self, update: int) -> Iterator[Finding]:
        trends = {key: self._trend(name) for key, name in self.trained.items()}
        for up, rise in trends.items():
            for down, fall in trends.items():
                if rise and fall and rise.rising and fall.falling:
                    message = (
                        f"{self._window()} the {up} reward of held-out cases rose from {rise} while the {down} "
                        f"reward fell from {fall}"
                    )
                    if advice := self.advice(self.roles.get(up, up), self.roles.get(down, down)):
                        message = f"{message}; {advice}"
                    names = self.trained[up], self.trained[down]
                    yield (DEGRADATION, up, down), RunWarning(update, DEGRADATION, message, *names)

    def _hacked(self, update: int) -> Iterator[Finding]:
        kind = "hacking suspected"
        for key, name in self.trained.items():
            rise = self._trend(name)
            if rise is None or not rise.rising:
                continue
            for metric in self._metrics_like(key):
                fall = self._trend(metric)
                if fall and fall.falling:
                    message = (
                        f"{self._window()} the {key} reward of held-out cases rose from {rise} while {metric}, "
                        f"which is not trained on, fell from {fall}; start again with a lower optimizer.lr or with "
                        f"{self.restraint}, and keep the best adapter: {shlex.quote(f'keep_best={metric}')}"
                    )
                    yield (kind, key, metric), RunWarning(update, kind, message, name, metric)

    def _metrics_like(self, key: str) -> list[str]:
        """Untrained metrics of the evaluations that measure what this reward should.

        Metrics of both qualities count only if no reward falls: a falling reward would explain their fall.
        """
        falls = [trend.falling for name in self.trained.values() if (trend := self._trend(name))]
        wanted = (self.roles.get(key, key), *(() if any(falls) else ("both",)))
        return [name for name in self.evaluations[-1] if self.measures.get(name) in wanted]

    def _window(self) -> str:
        first, last = (self.evaluations[index]["update"] for index in (0, -1))
        return f"over the last {EVALUATIONS} evaluations (updates {first} to {last})"

    def _trend(self, metric: str) -> Trend | None:
        """None unless the whole window could be scored."""
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


# --- errors that end a run -------------------------------------------------------------------------------------------


class TrainingError(RunError, RuntimeError):
    """Training cannot go on; the message names the update and the sample, and says what to do."""


def degradation(warning: Mapping[str, Any], run: Path) -> TrainingError:
    """Why a run stops that is told to stop at competitive degradation."""
    return TrainingError(
        f"stopped after update {warning['update']}, as on_degradation=stop says: {warning['message']}. To go on as it "
        f"is: customized-grpo train {as_argument(run)} --resume on_degradation=say"
    )


def not_finite(what: str, update: int, where: str = "") -> TrainingError:
    return TrainingError(
        f"the {what} is not finite at update {update}{where}; lower optimizer.lr or use model.dtype=float32. "
        "Checkpoints saved before are intact."
    )


# How far log-probabilities of rollout and update may differ by rounding; and never by more than half a clip range.
ROUNDING = {"float32": 1e-5, "bfloat16": 1e-4}


def refuse_ratio(
    changes: Sequence[float], limits: Sequence[float], steps: Sequence[int], dtype: str, update: int
) -> None:
    """Raises TrainingError if log-probabilities differ by more than rounding.

    changes  the largest difference at each denoising step of `steps`
    limits   the difference that would fill half a clip range there
    """
    for step, change, limit in zip(steps, changes, limits, strict=True):
        allowed = min(ROUNDING[dtype], limit)
        if change <= allowed:
            continue
        raise TrainingError(
            f"before the optimiser step of update {update}, replaying the rollout changes log-probabilities by "
            f"{change:.2e} at denoising step {step} (allowed: {allowed:.0e}, for rounding, and at most half of "
            "objective.clip_range after the step's scale), so the "
            "ratio of new to old policy would not be 1. Usual causes: dropout that is active in the update (call "
            ".eval()), weights changed between rollout and update, or a different precision or batch size in one of "
            "the two."
        )
