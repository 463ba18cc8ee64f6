"""Competitive degradation and hacking, looked for in every finished run of a comparison.

Definitions, on the run's held-out cases and against its first evaluation, that of update 0:

    competitive degradation   the identity reward is up, the prompt reward and the oracle's prompt figure are down
    mirrored degradation      the prompt reward is up, the identity reward and the oracle's identity figure are down
    hacking                   a reward is up, the oracle's figure of the same thing is down

Without an oracle degradation is judged by the rewards alone, and hacking cannot be judged. Up and down are signs
alone, whatever the noise of the cases; the run's own warnings (watch.py) ask for significant trends instead. Both are
counted here, side by side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

LAST = 3  # evaluations whose mean is the end of a run


@dataclass(frozen=True)
class Kind:
    """One thing to look for: `up` rises while `down` falls, and `also` too where it is measured."""

    name: str
    up: str
    down: str
    also: str | None = None

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")

    def metrics(self, row: Mapping[str, Any]) -> list[str]:
        """What is compared, the rising one first, in a run whose first evaluation is `row`."""
        return [self.up, self.down, *([self.also] if self.also and self.also in row else [])]


KINDS = (
    Kind("competitive_degradation", "identity_reward", "prompt_reward", "oracle_prompt"),
    Kind("mirrored_degradation", "prompt_reward", "identity_reward", "oracle_identity"),
    Kind("identity_hacking", "identity_reward", "oracle_identity"),
    Kind("prompt_hacking", "prompt_reward", "oracle_prompt"),
)
WARNED = ("competitive degradation", "hacking suspected")  # kinds of warnings that speak of the same
# What rose and what fell stand in the sentence alone.
SENTENCE = re.compile(
    r"the (?P<up>\w+) reward of held-out cases rose .* "
    r"while (the (?P<reward>\w+) reward|(?P<metric>.+), which is not trained on,) fell"
)


@dataclass(frozen=True)
class Held:
    """Whether a kind held in one run at its end, and the updates of the evaluations that it held at."""

    at_end: bool
    updates: tuple[int, ...]


def held(kind: Kind, held_out: Sequence[Mapping[str, Any]]) -> Held | None:
    """`kind` in the rows of one run's evaluations; those that could not be scored are left out.

    None where it cannot be judged: no first evaluation, none after it, or not by these metrics.
    """
    metrics = kind.metrics(held_out[0]) if held_out else []
    scored = [row for row in held_out if all(_known(row.get(metric)) for metric in metrics)]
    if len(scored) < 2 or scored[0] is not held_out[0]:
        return None
    first, *after = scored
    last = after[-LAST:]
    # Rounded: the mean of three equal numbers need not be that number, and signs are all that is asked.
    end = {metric: round(sum(row[metric] for row in last) / len(last), 9) for metric in metrics}
    updates = tuple(row["update"] for row in after if _holds(metrics, first, row))
    return Held(_holds(metrics, first, end), updates)


def _known(value: Any) -> bool:
    return value is not None and not math.isnan(value)


def _holds(metrics: Sequence[str], first: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    up, *down = metrics
    return later[up] > first[up] and all(later[metric] < first[metric] for metric in down)


def spoken_of(warning: Mapping[str, Any]) -> tuple[str, str] | None:
    """The metrics that rose and fell by a run's own warning; None where its sentence does not say."""
    found = SENTENCE.search(warning["message"])
    if found is None:
        return None
    return f"{found['up']}_reward", found["metric"] or f"{found['reward']}_reward"


@dataclass(frozen=True)
class Found:
    """One kind in all runs of an arm: numbers of seeds, and updates."""

    judged: int  # seeds whose evaluations can tell
    at_end: int
    on_the_way: int  # at some evaluation after the first, the end's included
    first_update: int | None  # of the evaluations at which it held, over all seeds
    last_update: int | None
    updates: Mapping[str, Sequence[int]]  # the same by seed, of the seeds where it held
    warned: int  # seeds whose run warned of it by itself
    first_warning: int | None  # update


@dataclass(frozen=True)
class ArmDegradation:
    """What was found in one arm, by the name of the kind."""

    arm: str
    seeds: int
    found: Mapping[str, Found]
    other_warnings: int  # of the run, of the same kinds, but about other metrics or in words that are not understood

    def as_dict(self) -> dict[str, Any]:
        kinds = {name: asdict(found) for name, found in self.found.items()}
        return {"arm": self.arm, "seeds": self.seeds, **kinds, "other_warnings": self.other_warnings}


def degradation_of(arm: str, runs: Mapping[int, Mapping[str, Any]]) -> ArmDegradation:
    """Of the results of one arm's finished runs, by seed."""
    warnings = {
        seed: [(warning["update"], spoken_of(warning)) for warning in run["warnings"] if warning["kind"] in WARNED]
        for seed, run in runs.items()
    }
    known = {(kind.up, kind.down) for kind in KINDS}
    others = sum(spoken not in known for each in warnings.values() for _, spoken in each)
    return ArmDegradation(arm, len(runs), {kind.name: _found(kind, runs, warnings) for kind in KINDS}, others)


def _found(
    kind: Kind,
    runs: Mapping[int, Mapping[str, Any]],
    warnings: Mapping[int, Sequence[tuple[int, tuple[str, str] | None]]],
) -> Found:
    judged = {seed: found for seed, run in runs.items() if (found := held(kind, run["held_out"]))}
    by_seed = {str(seed): found.updates for seed, found in judged.items() if found.updates}
    updates = [update for each in by_seed.values() for update in each]
    warned = [[update for update, spoken in each if spoken == (kind.up, kind.down)] for each in warnings.values()]
    return Found(
        judged=len(judged),
        at_end=sum(found.at_end for found in judged.values()),
        on_the_way=len(by_seed),
        first_update=min(updates, default=None),
        last_update=max(updates, default=None),
        updates=by_seed,
        warned=sum(map(bool, warned)),
        first_warning=min((update for each in warned for update in each), default=None),
    )
