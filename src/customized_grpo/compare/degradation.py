"""Competitive degradation and hacking, looked for in every finished run of a comparison.

Definitions, on the run's held-out cases and relative to its first evaluation, that of update 0:

    competitive degradation   the identity reward is up, the prompt reward and the oracle's prompt figure are down
    mirrored degradation      the prompt reward is up, the identity reward and the oracle's identity figure are down
    hacking                   a reward is up, the oracle's figure of the same quality is down

Without an oracle, degradation is judged by the rewards alone and hacking cannot be judged. Up and down are decided by
sign alone, regardless of noise in the cases; the run's own warnings (training/watch.py) require significant trends.
Both are counted here, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

LAST = 3  # evaluations whose mean counts as the end of a run


@dataclass(frozen=True)
class Kind:
    """One thing to look for: `up` rises while `down` falls, and `also` falls too if it is measured."""

    name: str
    up: str
    down: str
    also: str | None = None

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")

    def metrics(self, first: Mapping[str, Any]) -> list[str]:
        """The metrics to compare in a run with this first evaluation: the rising one, then the falling ones."""
        return [self.up, self.down, *([self.also] if self.also and self.also in first else [])]


KINDS = (
    Kind("competitive_degradation", "identity_reward", "prompt_reward", "oracle_prompt"),
    Kind("mirrored_degradation", "prompt_reward", "identity_reward", "oracle_identity"),
    Kind("identity_hacking", "identity_reward", "oracle_identity"),
    Kind("prompt_hacking", "prompt_reward", "oracle_prompt"),
)
WARNING_KINDS = ("competitive degradation", "hacking suspected")  # the run's own warnings about the same things


@dataclass(frozen=True)
class Verdict:
    """Whether one run shows a kind at its end, and the updates of the evaluations that show it."""

    at_end: bool
    updates: tuple[int, ...]


def judge(kind: Kind, held_out: Sequence[Mapping[str, Any]]) -> Verdict | None:
    """Look for `kind` in the evaluation rows of one run; rows that lack one of its metrics are left out.

    None if it cannot be judged: the first evaluation, or every later one, lacks one of the metrics.
    """
    metrics = kind.metrics(held_out[0]) if held_out else []
    scored = [row for row in held_out if all(_is_number(row.get(metric)) for metric in metrics)]
    if len(scored) < 2 or scored[0] is not held_out[0]:
        return None
    first, *later = scored
    last = later[-LAST:]
    # Rounded because the floating-point mean of equal numbers can differ from them, and only the sign counts.
    end = {metric: round(sum(row[metric] for row in last) / len(last), 9) for metric in metrics}
    updates = tuple(row["update"] for row in later if _rose_and_fell(metrics, first, row))
    return Verdict(_rose_and_fell(metrics, first, end), updates)


def _is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _rose_and_fell(metrics: Sequence[str], first: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    up, *down = metrics
    return later[up] > first[up] and all(later[metric] < first[metric] for metric in down)


@dataclass(frozen=True)
class Counts:
    """One kind over all runs of an arm, in numbers of seeds and in updates. The fields are keys of comparison.json."""

    judged: int  # seeds that could be judged
    at_end: int
    on_the_way: int  # at any evaluation after the first, including the last
    first_update: int | None  # of the evaluations that show it, over all seeds
    last_update: int | None
    updates: Mapping[str, Sequence[int]]  # seed -> updates of the evaluations that show it, for seeds with any
    warned: int  # seeds whose run warned of it
    first_warning: int | None  # update


@dataclass(frozen=True)
class ArmDegradation:
    """What one arm shows, by the name of the kind."""

    arm: str
    seeds: int
    counts: Mapping[str, Counts]
    other_warnings: int  # of the same kinds, but about other metrics, or from an old run whose rows do not name them

    def as_dict(self) -> dict[str, Any]:
        kinds = {name: asdict(counts) for name, counts in self.counts.items()}
        return {"arm": self.arm, "seeds": self.seeds, **kinds, "other_warnings": self.other_warnings}


def degradation_of(arm: str, runs: Mapping[int, Mapping[str, Any]]) -> ArmDegradation:
    """Judge one arm by the results of its finished runs, by seed."""
    warnings = [[warning for warning in run["warnings"] if warning["kind"] in WARNING_KINDS] for run in runs.values()]
    known = {(kind.up, kind.down) for kind in KINDS}
    others = sum(_metrics_of(warning) not in known for of_run in warnings for warning in of_run)
    return ArmDegradation(arm, len(runs), {kind.name: _count(kind, runs, warnings) for kind in KINDS}, others)


def _metrics_of(warning: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The metrics that rose and fell according to a run's own warning."""
    return warning.get("rising"), warning.get("falling")


def _count(
    kind: Kind, runs: Mapping[int, Mapping[str, Any]], warnings: Sequence[Sequence[Mapping[str, Any]]]
) -> Counts:
    verdicts = {seed: verdict for seed, run in runs.items() if (verdict := judge(kind, run["held_out"]))}
    by_seed = {str(seed): verdict.updates for seed, verdict in verdicts.items() if verdict.updates}
    updates = [update for of_seed in by_seed.values() for update in of_seed]
    warned = [[w["update"] for w in of_run if _metrics_of(w) == (kind.up, kind.down)] for of_run in warnings]
    return Counts(
        judged=len(verdicts),
        at_end=sum(verdict.at_end for verdict in verdicts.values()),
        on_the_way=len(by_seed),
        first_update=min(updates, default=None),
        last_update=max(updates, default=None),
        updates=by_seed,
        warned=sum(map(bool, warned)),
        first_warning=min((update for of_run in warned for update in of_run), default=None),
    )
